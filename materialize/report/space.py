"""The report of a space, from what the jobs left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from materialize.config import RepoSettings
from materialize.evaluate.run import space_folder
from materialize.evaluate.summary import read_summary
from materialize.ledger import Ledger, Space
from materialize.report.lineage import MOST_SPACES, Picture, draw_lineage
from materialize.report.people import read_people
from materialize.report.report import ReportInput, write_report
from materialize.results import evaluation_path
from materialize.space_record import space_record
from materialize.study.run import read_study
from materialize.study.studies import STUDIES
from transforms.clean import CleanTables
from transforms.runtime import load_encoder

__all__ = ["report_space"]


def report_space(
    settings: RepoSettings,
    space: Space,
    path: Path,
    summary: Mapping[str, Any] | None = None,
    *,
    ledger: Ledger | None = None,
) -> Path:
    """Write a space's report from what the jobs left on disk.

    Parameters
    ----------
    settings : RepoSettings
    space : Space
    path : Path
        The HTML file.
    summary : mapping, optional
        Further facts of the run (``source``, ``steps``, ...), see ``ReportInput``.
    ledger : Ledger, optional
        Draws where the space comes from and who reads it; reads the artifacts of all spaces.

    Raises
    ------
    DataFault
        The space has no rows yet, or no validated data is there.
    """
    clean = CleanTables(settings.data_dir)
    clean.require()
    artifact = load_encoder(settings.artifacts_url, space.encoder_version)
    users, neighbours = read_people(settings, space)
    evaluated = evaluation_path(settings, space)
    probe = (
        json.loads(evaluated.read_text(encoding="utf-8"))["probe"] if evaluated.exists() else None
    )
    record = None if ledger is None else space_record(settings, ledger, space.number)
    studies = [read_study(settings, name) for name in STUDIES]
    facts = {
        "dataset": settings.dataset.name,
        "source": "repository",
        "space": space.number,
        "encoder_version": space.encoder_version,
        "embedding_dim": artifact.manifest.embedding_dim,
    }
    return write_report(
        ReportInput(
            summary=facts | dict(summary or {}),
            history=artifact.manifest.training["history"],
            probe=probe,
            user_map=users,
            neighbours=neighbours,
            validation=json.loads(clean.report.read_text(encoding="utf-8")),
            lineage=None if ledger is None else _lineage(settings, ledger, space),
            evaluation=read_summary(space_folder(settings, space)),
            studies=[study for study in studies if study is not None],
            record=record,
        ),
        path,
    )


def _lineage(settings: RepoSettings, ledger: Ledger, space: Space) -> Picture:
    """Draw the space among the newest others that are not retired."""
    known = ledger.spaces()
    others = [s.number for s in known if s.state != "retired" and s.number != space.number]
    numbers = sorted([*others[1 - MOST_SPACES :], space.number])
    records = [space_record(settings, ledger, number) for number in numbers]
    return draw_lineage(records, space.number, left_out=len(known) - len(numbers))
