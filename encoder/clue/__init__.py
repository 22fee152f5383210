"""CLUE: a contrastive user encoder over the texts of several services (arXiv 2111.11294)."""
