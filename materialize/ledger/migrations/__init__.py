"""Alembic's scripts, one for each revision of the ledger; `migrate` runs them."""
