"""Judging an embedding: labels after a cut-off, a linear probe, baselines."""
