"""One script answers one question: ``make bench NAME=x`` runs ``benchmarks/x.py``."""
