"""An autoencoder that reads, as one more block, the contrastive encoder's vector of a user."""
