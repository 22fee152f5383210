"""What most commands open first: settings, Feast store and ledger of one repository."""

from __future__ import annotations

import getpass
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from materialize.config import RepoSettings, load_settings
from materialize.ledger import Ledger

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["Context", "open_ledger", "operator_name"]


class Context:
    """Settings, Feast store and ledger of a feature repository, each opened on first use."""

    def __init__(self, repo: Path) -> None:
        self.settings: RepoSettings = load_settings(repo)

    @cached_property
    def store(self) -> FeatureStore:
        """The Feast store; importing Feast takes seconds."""
        from feast import FeatureStore

        return FeatureStore(repo_path=str(self.settings.repo))

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; its tables are made when they are not there."""
        return Ledger(self.settings.ledger_url)


def open_ledger(repo: Path) -> Ledger:
    """Return a repository's ledger without importing Feast."""
    return Context(repo).ledger


def operator_name() -> str:
    """Return who runs the command, as the ledger records it: ``PALATE_USER``, else the account."""
    named = os.environ.get("PALATE_USER")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id that no account has
        return f"user id {os.getuid()}"
