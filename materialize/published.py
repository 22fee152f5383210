"""Which Parquet files of an embedding view hold rows that count."""

from __future__ import annotations

from pathlib import Path

from materialize.ledger import Ledger
from materialize.source import parquet_files
from materialize.stores.append import is_pushed

__all__ = ["published_files"]


def published_files(
    ledger: Ledger, view: str, folder: Path, *, online_only: bool = False
) -> list[Path]:
    """Return a view's files that committed runs or pushes wrote, ordered by name.

    Parameters
    ----------
    ledger : Ledger
    view : str
    folder : Path
        Of the view; need not exist.
    online_only : bool
        Leave out runs over history, which write offline alone.
    """
    committed = {
        f"run-{run.run_id}"
        for run in ledger.runs()
        if run.view == view
        and run.state == "committed"
        and not (online_only and run.plan.get("from_history"))
    }
    return [
        path for path in parquet_files(folder) if is_pushed(path) or path.parent.name in committed
    ]
