"""How the contrastive encoder's loss falls with compute: a grid of trainings, fits and plots."""
