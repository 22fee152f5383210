"""``dataset.yaml``: where a company's events, users and items are, and what their columns mean."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from encoder.errors import DataFault
from transforms.layout import RAW_FIELDS
from transforms.names import EMBEDDING_FEATURES, USER_KEY

__all__ = [
    "Dataset",
    "EvaluationConfig",
    "EventsTable",
    "ItemsTable",
    "ModalityConfig",
    "SnapshotConfig",
    "TextsConfig",
    "TimeColumn",
    "UsersTable",
    "load_dataset",
]

_TAKEN = {USER_KEY, "event_timestamp", "created_timestamp", *EMBEDDING_FEATURES, *RAW_FIELDS}
"""Names that stand beside the request's in one request, and may not be its."""

_PATHS = (("events", "path"), ("users", "path"), ("items", "path"), ("texts", "tokenizer"))

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimeColumn(_Strict):
    """A column that holds instants."""

    column: str
    """Name in the Parquet table."""
    unit: Literal["s", "ms", "us"] | None = None
    """Unit of an integer column that counts from the Unix epoch (UTC)."""
    timezone: str | None = None
    """IANA name of the zone that a timestamp column without a time zone was written in."""


class _Column(_Strict):
    column: str


def _named(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


Time = Annotated[TimeColumn, BeforeValidator(_named)]


class TagsColumn(_Column):
    """A column of tags: a list of strings, one string, or one string to split."""

    separator: str | None = None
    """What separates the tags of a plain string column; None: the whole value is one tag."""


class EventsTable(_Strict):
    """One row is one thing a user did with an item."""

    path: str
    """A Parquet file, folder or glob, from the YAML's folder; may hold ``${NAME}``."""
    user: str
    """Column of user ids, integer or string."""
    item: str
    """Column of item ids, integer or string."""
    timestamp: Time
    """When it happened: a name, or {column, unit, timezone}."""
    weight: str | None = None
    """Column with a positive number: how much the event counts in a pooled vector; default 1."""
    session: str | None = None
    """Column of session ids; items of one session co-occur. Default: a user's UTC day."""
    service: str | None = None
    """Column that names the service an event comes from."""
    context: tuple[str, ...] = ()
    """Columns with the circumstances of an event (country, device, ...), kept as categories."""
    request_context: tuple[str, ...] = ()
    """Those of ``context`` that each request of an on-demand view gives as they are now; spaces
    trained from now on."""

    @model_validator(mode="after")
    def _given_once_and_known(self) -> EventsTable:
        given = self.request_context
        if len(set(given)) < len(given) or not set(given) <= set(self.context):
            raise ValueError(
                f"request_context {list(given)} given, some of the context columns expected, each "
                f"once: {', '.join(self.context) or 'there are none'}"
            )
        taken = sorted(set(given) & _TAKEN)
        if taken:
            raise ValueError(
                f"request_context: {', '.join(taken)} is a name of Palate's or Feast's own; rename "
                "the column of the events"
            )
        return self


class UsersTable(_Strict):
    """One row a user. Without this table, users are those who have events."""

    path: str
    """A Parquet file, folder or glob."""
    user: str
    """Column of user ids."""
    signed_up_at: Annotated[TimeColumn | None, BeforeValidator(_named)] = None
    """When the user joined; default: the user's first event."""
    categories: tuple[str, ...] = ()
    """Columns kept as categories (country, gender, age group, ...)."""
    numbers: tuple[str, ...] = ()
    """Columns kept as numbers."""
    onboarding: str | None = None
    """List column of the item ids that the user picked when joining."""


class ItemsTable(_Strict):
    """One row an item."""

    path: str
    """A Parquet file, folder or glob."""
    item: str
    """Column of item ids."""
    text: tuple[str, ...] = ()
    """Text columns, joined with a space."""
    tags: Annotated[TagsColumn | None, BeforeValidator(_named)] = None
    """Categories, genres or tags: a name, or {column, separator}."""
    vectors: Mapping[str, str] = Field(default_factory=dict)
    """Modality name -> list column of floats: vectors that the company brings as they are."""


class ModalityConfig(_Strict):
    """How one kind of item vector is made."""

    dim: int = Field(default=64, ge=2, le=1024)
    """Vector length; a brought vector keeps its own and ignores this."""
    clusters: int = Field(default=32, ge=2, le=4096)
    """Number of item clusters in the interest histogram."""
    text_model: str | None = None
    """Content only: folder of a sentence-transformers model on disk; default TF-IDF and SVD."""


class TextsConfig(_Strict):
    """What raw features carry of users' newest events as texts, for the contrastive encoder."""

    vocabulary: int = Field(default=8192, ge=260, le=65_536)
    """Token ids at most: bytes, merges, a guide token a service."""
    tokenizer: str | None = None
    """Folder of an encoder artifact whose tokenizer makes the tokens, in place of one learned here:
    that encoder can then be adopted. Its services keep their guide tokens, others share one."""
    max_item_tokens: int = Field(default=24, ge=2, le=512)
    """Tokens of an item's text, guide token included."""
    max_events: int = Field(default=32, ge=1, le=4096)
    """Newest events of a user in each service."""


class SnapshotConfig(_Strict):
    """Days (00:00 UTC) at which history is cut into raw feature rows, besides the data's end."""

    every_days: int = Field(default=1, ge=1)
    """Distance between two snapshots, counted back and forth from the evaluation cut-off."""
    first: AwareDatetime | None = None
    """Earliest snapshot; default: the day after the first event."""


class EvaluationConfig(_Strict):
    """What is held back from training, and what the probe predicts."""

    cutoff: AwareDatetime
    """Everything learned sees only events before this instant (00:00 UTC of a day)."""
    horizon_days: int = Field(default=7, ge=1)
    """A label is positive when the user consumes the target within so many days."""
    label_times: Literal["cutoff", "active_days"] = "cutoff"
    """``cutoff``: one label time for all users who come back within the horizon. ``active_days``:
    00:00 UTC of days from the cut-off on at which a user with a past is active, at most three
    each."""
    max_targets: int = Field(default=30, ge=1)
    """The most frequent item tags (or content clusters where items have no tags) to predict."""

    @model_validator(mode="after")
    def _midnight(self) -> EvaluationConfig:
        if self.cutoff.timestamp() % 86_400:
            raise ValueError(f"cutoff {self.cutoff.isoformat()} given, 00:00 UTC of a day expected")
        return self


class Dataset(_Strict):
    """A whole ``dataset.yaml``."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Lower case, used in folder names."""
    events: EventsTable
    users: UsersTable | None = None
    items: ItemsTable | None = None
    windows: tuple[int, ...] = (7, 30, 180)
    """Calendar days (UTC), ascending; each ends with the day of the user's newest event."""
    modalities: Mapping[str, ModalityConfig] = Field(
        default_factory=lambda: {"collaborative": ModalityConfig()}
    )
    """``collaborative``, ``content``, or the name of a brought vector."""
    texts: TextsConfig | None = None
    """Raw features carry texts, too (view ``user_texts``); needs items.text or items.tags."""
    item_vectors_until: AwareDatetime | None = None
    """Item vectors are fitted on events before this instant (00:00 UTC of a day); default: the
    evaluation cut-off. Left where it is while that moves on, only the autoencoder is trained anew,
    and older spaces can still be encoded from the raw features."""
    snapshots: SnapshotConfig = SnapshotConfig()
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _consistent(self) -> Dataset:
        if list(self.windows) != sorted(set(self.windows)) or self.windows[0] < 1:
            raise ValueError(f"windows {list(self.windows)} given, ascending days >= 1 expected")
        brought = set(self.items.vectors) if self.items else set()
        known = {"collaborative", "content"} | brought
        unknown = sorted(set(self.modalities) - known)
        if unknown:
            raise ValueError(
                f"modalities: {', '.join(unknown)} given, known are {', '.join(sorted(known))} "
                "(a brought vector is named under items.vectors)"
            )
        if "content" in self.modalities and not (
            self.items and (self.items.text or self.items.tags)
        ):
            raise ValueError("modalities: content needs items.text or items.tags")
        if self.texts and not (self.items and (self.items.text or self.items.tags)):
            raise ValueError("texts: needs items.text or items.tags")
        until = self.item_vectors_until
        if until is not None and (until.timestamp() % 86_400 or until > self.evaluation.cutoff):
            raise ValueError(
                f"item_vectors_until {until.isoformat()} given, 00:00 UTC of a day up to the "
                f"evaluation cut-off {self.evaluation.cutoff.isoformat()} expected"
            )
        return self

    @property
    def item_vectors_cutoff(self) -> datetime:
        """Item vectors are fitted on events before it."""
        return self.item_vectors_until or self.evaluation.cutoff


def load_dataset(path: str | Path, environ: Mapping[str, str] = os.environ) -> Dataset:
    """Read and check a ``dataset.yaml``.

    Parameters
    ----------
    path : str or Path
    environ : mapping, optional
        Where ``${NAME}`` in a ``path:`` is looked up. An unset variable is left as it stands, so
        that views can be declared on a machine without the data; reading the data then fails.

    Raises
    ------
    DataFault
        The file is missing, no YAML mapping, or has unknown, missing or contradicting fields; the
        message names each field as the user wrote it.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFault(
            f"{path} does not exist. `palate init DIR` writes one to start from."
        ) from None
    except yaml.YAMLError as exc:
        raise DataFault(f"{path} is not valid YAML: {exc}") from exc
    if not isinstance(raw, dict):
        raise DataFault(f"{path} holds {type(raw).__name__}, a mapping is expected.")
    for section, name in _PATHS:
        if isinstance(raw.get(section), dict) and isinstance(raw[section].get(name), str):
            value = _VARIABLE.sub(lambda m: environ.get(m.group(1), m.group(0)), raw[section][name])
            # From the YAML's folder, wherever the command runs; "${UNSET}/x" stays to be named.
            whole = value.startswith("${") or "://" in value
            raw[section][name] = value if whole else str(path.parent / value)
    try:
        return Dataset.model_validate(raw)
    except ValidationError as exc:
        faults = "\n".join(
            f"  {'.'.join(str(p) for p in e['loc']) or 'dataset'}: {e['msg']}" for e in exc.errors()
        )
        raise DataFault(f"{path} has {exc.error_count()} fault(s):\n{faults}") from exc


def as_utc_day(moment: datetime) -> int:
    """Return the number of the UTC day (days since 1970-01-01) that ``moment`` lies in."""
    return int(moment.timestamp() // 86_400)
