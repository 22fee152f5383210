"""Compute engine plugin: ``feast materialize`` and ``palate materialize`` are the same job.

Named by class path in ``feature_store.yaml``::

    batch_engine:
      type: materialize.engine.PalateComputeEngine
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from feast import FileSource
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

from materialize.batch import materialize_space, materialize_spaces, materialize_view
from materialize.context import Context
from transforms.names import BRIDGE_TAG, ENCODER_TAG, SPACE_TAG

__all__ = ["PalateComputeEngine", "PalateComputeEngineConfig"]


class PalateComputeEngineConfig(FeastConfigBaseModel):
    """Settings of the engine."""

    type: Literal["materialize.engine.PalateComputeEngine"] = (
        "materialize.engine.PalateComputeEngine"
    )
    """Class path of the engine."""


@dataclass(frozen=True)
class _Job(MaterializationJob):
    """A job that is over when it is returned."""

    name: str
    failure: BaseException | None = None

    def status(self) -> MaterializationJobStatus:
        failed = self.failure is not None
        return MaterializationJobStatus.ERROR if failed else MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        return self.failure

    def should_be_retried(self) -> bool:
        return False

    def job_id(self) -> str:
        return self.name

    def url(self) -> str | None:
        return None


class PalateComputeEngine(LocalComputeEngine):
    """Hands a space's view to the batch job and other views to the Arrow path.

    A view that the Arrow path cannot read (no Parquet ``FileSource``, or several join keys) is
    materialised by Feast's local engine as before.

    Notes
    -----
    Feast's range includes its end; Palate's does not, so one microsecond is added. Rows that came
    late (an event before the range, written since the last run) reach the stores, too.
    """

    def _materialize_one(  # type: ignore[override]  # any job is one, Feast's base class says
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> MaterializationJob:
        view = task.feature_view
        name = f"{view.name}-{task.start_time.isoformat()}-{task.end_time.isoformat()}"
        is_space = SPACE_TAG in view.tags
        if not is_space and not (
            isinstance(view.batch_source, FileSource) and len(view.join_keys) == 1
        ):
            return super()._materialize_one(registry, task, **kwargs)
        try:
            self._run(task)
        except Exception as exc:  # noqa: BLE001  # Feast raises what the job reports
            return _Job(name, exc)
        return _Job(name)

    def _run(self, task: MaterializationTask) -> None:
        context = Context(Path(str(self.repo_config.repo_path)))
        where = (context.store, context.settings, context.ledger)
        view, tags = task.feature_view.name, task.feature_view.tags
        end = task.end_time + timedelta(microseconds=1)  # Feast's range includes its end
        reach: dict[str, Any] = {"start": task.start_time, "end": end}
        if BRIDGE_TAG in tags:
            bridge = context.ledger.bridge(tags[ENCODER_TAG])
            materialize_spaces(*where, [], [bridge], **reach)
        elif SPACE_TAG in tags:
            materialize_space(*where, context.ledger.space(int(tags[SPACE_TAG])), **reach)
        else:
            materialize_view(*where, view, **reach)
