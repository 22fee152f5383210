"""Feast stores, named by class path in ``feature_store.yaml``."""
