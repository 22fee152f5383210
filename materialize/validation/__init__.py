"""The parts of ``palate data validate``: sources, checks, writing, report."""
