"""Processes that are forked with everything imported.

`import feast` costs seconds: a fork server pays once, and every process is a fork of it. It has no
connections, threads or servers of the tests' own process.
"""

from __future__ import annotations

import multiprocessing

__all__ = ["FORKS", "preload"]

FORKS = multiprocessing.get_context("forkserver")
_MODULES: list[str] = []


def preload(*modules: str) -> None:
    """Let the fork server import these too; it begins with the first process that is asked for."""
    _MODULES.extend(modules)
    FORKS.set_forkserver_preload(_MODULES)
