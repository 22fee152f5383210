"""``palate.yaml``: the settings of one feature repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoder.errors import DataFault
from transforms.dataset import Dataset, load_dataset

__all__ = [
    "CONFIG_FILE",
    "CompatibilitySettings",
    "HybridSettings",
    "JobSettings",
    "RepoSettings",
    "StreamSettings",
    "load_settings",
]

CONFIG_FILE = "palate.yaml"


class JobSettings(BaseModel):
    """``materialize:`` how the batch job runs; options of ``palate materialize`` go before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["local", "ray"] = "local"
    """``ray`` needs the extra of that name; it uses the cluster that ``RAY_ADDRESS`` names, or
    starts one on this machine."""
    workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1)
    """Partitions that are worked on at the same time."""
    rows_per_partition: int = Field(default=25_000, ge=1)
    """Users of a partition: what is done again when a run is killed, and what a worker holds."""
    online_rows_per_second: float | None = Field(default=None, gt=0)
    """Upper bound of all workers together; None: as fast as the online store takes them."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Port on which a run answers Prometheus while it lasts; 0: none."""
    metrics_folder: str | None = None
    """Folder of node_exporter's textfile collector, from the repository's folder; a run leaves its
    metrics there when it ends."""


class CompatibilitySettings(BaseModel):
    """``compatibility:`` keeps the next encoder's embeddings close to those of an earlier space."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: int = Field(ge=1)
    """The earlier space; its modality encoders must be the ones of today's raw features."""
    weight: float = Field(default=1.0, gt=0)
    """Of the term beside the reconstruction loss."""


class HybridSettings(BaseModel):
    """``hybrid:`` what an encoder of that kind is made of, beside the raw features' blocks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: int = Field(ge=1)
    """A space of kind ``clue``: its encoder gives the vector of a user's texts. It must have been
    trained on the item texts of today's raw features, and on nothing that its users did from the
    cut-off on."""


class StreamSettings(BaseModel):
    """``stream:`` how ``palate stream run`` takes events; its options go before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = None
    """Redis of the event stream, a single server (``redis://``, ``rediss://``, ``unix://``);
    ``${NAME}`` is read from the environment. None: the online store's."""
    nats: str | None = None
    """NATS server with JetStream that holds the events (``nats://``, ``tls://``, several with
    commas between) instead of Redis Streams; leases and dead letters stay in Redis. ``${NAME}`` is
    read from the environment. Needs the extra ``nats``."""
    partitions: int = Field(default=16, ge=1, le=1024)
    """Streams that events are spread over by user: as many workers at most. Fixed in Redis at first
    use."""
    batch_events: int = Field(default=1000, ge=1)
    """Events of a micro-batch at most: more for throughput, fewer for latency."""
    linger_ms: float = Field(default=5.0, ge=0, le=10_000)
    """How long a micro-batch that is not full waits for more events."""
    flush_seconds: float = Field(default=30.0, gt=0)
    """Offline rows are written, and events acknowledged, at least so often while events come."""
    flush_rows: int = Field(default=50_000, ge=1)
    """... or as soon as so many offline rows wait."""
    late_days: int = Field(default=7, ge=0)
    """How many days after the end of the seeded data's newest day late events are still exact."""
    future_seconds: float = Field(default=60.0, ge=0)
    """Events further ahead of the clock than this are faults."""
    max_events_per_user: int = Field(default=50_000, ge=1)
    """Events inside the longest window that a user's state holds at most."""
    retention_hours: float = Field(default=48.0, gt=0)
    """Acknowledged events stay in the stream so long."""
    lease_seconds: float = Field(default=10.0, ge=0.5)
    """A worker without a sign of life for so long loses its partitions to the others."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Port on which the first worker answers Prometheus, the next ones on those that follow; 0:
    none."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    """Path of the ``dataset.yaml``, from the repository's folder."""
    data_dir: str = "data"
    """Folder of everything that jobs build, from the repository's folder."""
    ledger: str | None = None
    """SQLAlchemy URL of the ledger; default: a SQLite file ``ledger.db`` under ``data_dir``."""
    artifacts: str | None = None
    """Folder or fsspec URL of the encoder artifacts; default: ``artifacts`` under ``data_dir``."""
    memory_limit_mb: int = Field(default=2048, ge=256)
    """What a job may hold in memory (MiB); more is spilled to disk."""
    seed: int = 0
    """Seed of item vectors, training and evaluation."""
    vectors: Literal["float32", "float16", "int8"] = "float32"
    """Form in which the online store keeps the vectors of spaces trained from now on."""
    materialize: JobSettings = JobSettings()
    """How the batch job runs."""
    stream: StreamSettings = StreamSettings()
    """How the stream of events is applied."""
    encoder: Literal["autoencoder", "clue", "hybrid"] = "autoencoder"
    """Kind of encoder that ``palate train`` makes; its ``--encoder`` goes before it. ``clue`` and
    ``hybrid`` need ``texts`` in the data set, and the extra ``clue``."""
    autoencoder: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``encoder.autoencoder.AutoencoderConfig`` that differ from its defaults."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``encoder.training.TrainingConfig`` that differ from its defaults."""
    clue: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``encoder.clue.network.ClueConfig`` that differ from its defaults, but for the
    lengths of texts, which the data set has."""
    clue_training: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``encoder.clue.config.ClueTrainingConfig`` that differ from its defaults."""
    hybrid: HybridSettings | None = None
    """Which contrastive encoder a ``hybrid`` one reads; ``autoencoder`` and ``training`` say the
    rest. None: only the other kinds can be trained."""
    compatibility: CompatibilitySettings | None = None
    """Backward-compatible training; None: the next encoder is free."""


class RepoSettings:
    """A feature repository's settings with every path made absolute.

    Attributes
    ----------
    repo : Path
        Folder with ``feature_store.yaml`` and ``palate.yaml``.
    file : validated content of ``palate.yaml``
    """

    def __init__(self, repo: Path, file: _File) -> None:
        self.repo = repo
        self.file = file
        self._dataset: Dataset | None = None

    def with_job(self, **changes: Any) -> RepoSettings:
        """Return the settings with other fields of ``materialize:``; None keeps a field.

        Raises
        ------
        pydantic.ValidationError
            A value is out of range.
        """
        return self._with("materialize", changes)

    def with_stream(self, **changes: Any) -> RepoSettings:
        """Return the settings with other fields of ``stream:``; None keeps a field.

        Raises
        ------
        pydantic.ValidationError
            A value is out of range.
        """
        return self._with("stream", changes)

    def _with(self, section: str, changes: Mapping[str, Any]) -> RepoSettings:
        before: BaseModel = getattr(self.file, section)
        given = {name: value for name, value in changes.items() if value is not None}
        after = type(before).model_validate(before.model_dump() | given)
        return RepoSettings(self.repo, self.file.model_copy(update={section: after}))

    def with_encoder(self, kind: str | None) -> RepoSettings:
        """Return the settings for another kind of encoder; None keeps the kind."""
        if kind is None:
            return self
        return RepoSettings(self.repo, self.file.model_copy(update={"encoder": kind}))

    @property
    def dataset_path(self) -> Path:
        """Absolute path of the ``dataset.yaml``."""
        return (self.repo / self.file.dataset).resolve()

    @property
    def dataset(self) -> Dataset:
        """The data set, read on first use."""
        if self._dataset is None:
            self._dataset = load_dataset(self.dataset_path)
        return self._dataset

    @property
    def data_dir(self) -> Path:
        """Absolute folder of everything that jobs build."""
        return (self.repo / self.file.data_dir).resolve()

    @property
    def features_dir(self) -> Path:
        """Folder of the raw feature views' Parquet."""
        return self.data_dir / "features"

    @property
    def offline_dir(self) -> Path:
        """Folder of the embedding views' Parquet, one sub-folder a view."""
        return self.data_dir / "offline"

    @property
    def metrics_folder(self) -> Path | None:
        """Absolute folder of metrics files."""
        folder = self.file.materialize.metrics_folder
        return None if folder is None else (self.repo / folder).resolve()

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL; a relative SQLite path is taken from the repository's folder."""
        url = self.file.ledger
        if url is None:
            return f"sqlite:///{self.data_dir / 'ledger.db'}"
        prefix = "sqlite:///"
        if url.startswith(prefix) and not url.startswith(prefix + "/"):
            return prefix + str(self.repo / url.removeprefix(prefix))
        return url

    @property
    def artifacts_url(self) -> str:
        """Absolute folder or fsspec URL of the artifact store."""
        url = self.file.artifacts
        if url is None:
            return str(self.data_dir / "artifacts")
        return url if "://" in url else str((self.repo / url).resolve())


def load_settings(repo: str | Path) -> RepoSettings:
    """Read ``palate.yaml`` of a feature repository.

    Parameters
    ----------
    repo : str or Path
        Folder that holds ``palate.yaml``.

    Raises
    ------
    DataFault
        No such file, no YAML mapping, or a field that is unknown or of the wrong type.
    """
    folder = Path(repo).resolve()
    path = folder / CONFIG_FILE
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFault(
            f"{folder} has no {CONFIG_FILE}, so it is no Palate feature repository. "
            "Name one with --repo, or run `palate init DIR`."
        ) from None
    except yaml.YAMLError as exc:
        raise DataFault(f"{path} is not valid YAML: {exc}") from exc
    try:
        return RepoSettings(folder, _File.model_validate(raw))
    except ValidationError as exc:
        faults = "\n".join(
            f"  {'.'.join(str(p) for p in e['loc']) or CONFIG_FILE}: {e['msg']}"
            for e in exc.errors()
        )
        raise DataFault(f"{path} has {exc.error_count()} fault(s):\n{faults}") from exc
