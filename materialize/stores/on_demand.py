"""A request for on-demand embeddings, resolved: stored bytes in, Feast's response out.

Only requests whose on-demand views are all Palate's own are taken, which is told by the text of
their functions, read and never run. What is out of the ordinary is left to Feast's own path, and
with it the error that a view's function raises there: an aliased view, a value that is not as Feast
or Palate write it. See ADR 0022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import FeatureService, FeatureView, OnDemandFeatureView, RepoConfig, utils
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

from encoder.columns import ScalarColumn
from materialize.stores.stored_columns import StoredColumns, encoder_columns
from materialize.stores.values import entity_keys, float_values, message_field, value_bytes
from materialize.stores.wire import Stored
from transforms.columns import with_request_context
from transforms.names import EMBEDDING_FEATURES, USER_KEY, is_on_demand_view
from transforms.on_demand import OnDemandSpec, spec_of
from transforms.runtime import Encoded, encode_request, load_encoder

__all__ = ["Request", "asks_on_demand", "prepare"]

_Vector = GetOnlineFeaturesResponse.FeatureVector

_KINDS = {"int64_val": ("INT64", pa.int64()), "string_val": ("STRING", pa.string())}
_PRESENT, _NO_TIME = b"\x01", b"\x1a\x00"
"""Status and event time of each value of an on-demand view, in Feast's own answers too."""


@dataclass(frozen=True)
class _Wanted:
    """An on-demand view, and which of its features are asked for."""

    spec: OnDemandSpec
    features: frozenset[str]


@dataclass(frozen=True)
class _Users:
    """Users of a request, in row order, and where each one is among those that are read."""

    ids: Sequence[Any]
    names: tuple[str, ...]
    keys: list[bytes]
    rows: list[int] | None
    """Row -> position in ``keys``; None: every row has a key of its own, in order."""


@dataclass(frozen=True)
class Request:
    """A request that can be answered from stored bytes.

    Attributes
    ----------
    fields : dict of str to tuple of str
        View, as the store names it -> its fields that are read for the encoders.
    direct : list of (FeatureView, list of str)
        Stored features that are asked for themselves. The store appends them to ``response`` as
        Feast does, before `respond`.
    grouped : list of (FeatureView, list of str)
        All stored features that Feast would read.
    join_key_values, join_keys
        What Feast hands to a store that reads.
    response : GetOnlineFeaturesResponse
        Begins with the join keys and what the request gives.
    """

    fields: dict[str, tuple[str, ...]]
    direct: list[tuple[FeatureView, list[str]]]
    grouped: list[tuple[FeatureView, list[str]]]
    join_key_values: Any
    join_keys: Any
    response: GetOnlineFeaturesResponse
    _users: _Users
    _views: Mapping[str, str]
    _wanted: Sequence[_Wanted]
    _given: Mapping[str, ScalarColumn]
    _named: set[str]
    _full: bool

    @property
    def keys(self) -> list[bytes]:
        """Entity keys to read, each once."""
        return self._users.keys

    def encode(self, found: Sequence[Sequence[bytes | None]]) -> list[Encoded] | None:
        """Return the embeddings of each view, or None: Feast's path has to be taken.

        Parameters
        ----------
        found : sequence of (sequence of bytes or None)
            For each of ``keys``, view by view: its fields' values, then its event time. Without a
            time there is no row.

        Raises
        ------
        MalformedInput, SpaceMismatch, ArtifactError
            As the view's function.
        """
        columns = StoredColumns(self._columns(found), self._users.names)
        encoded = []
        for wanted in self._wanted:
            spec = wanted.spec
            batch = columns.batch(spec.store, spec.encoder_version)
            if columns.faults:
                return None
            if spec.request_context:
                schema = load_encoder(spec.store, spec.encoder_version).preprocessor.schema
                given = {name: self._given[name] for name in spec.request_context}
                batch = with_request_context(batch, schema, given)
            encoded.append(encode_request(batch, spec.encoder_version, spec.store))
        return encoded

    def respond(self, encoded: Sequence[Encoded], types: Mapping[str, Any]) -> OnlineResponse:
        """Complete the response and return it; ``types`` are Feast's of the stored features."""
        n = len(self._users.ids)
        tail = message_field(2, _PRESENT * n) + _NO_TIME * n
        for wanted, answer in zip(self._wanted, encoded, strict=True):
            for name in EMBEDDING_FEATURES:
                if name in wanted.features:
                    values = _SERIALISED[name](answer, wanted.spec)
                    content = b"".join([message_field(1, value) for value in values])
                    self.response.results.append(_Vector.FromString(content + tail))
                    full = f"{wanted.spec.view}__{name}"
                    self.response.metadata.feature_names.val.append(full if self._full else name)
        utils._drop_unneeded_columns(self.response, self._named)
        return OnlineResponse(self.response, feature_types=dict(types))

    def _columns(self, found: Sequence[Sequence[bytes | None]]) -> dict[str, Stored]:
        """Return what is stored, by column ``view__field``, a value a row of the request."""
        by_field: Iterator[Sequence[bytes | None]] = zip(*found, strict=True)
        columns: dict[str, Stored] = {}
        for view, fields in self.fields.items():
            values = [next(by_field) for _ in fields]
            times = next(by_field)
            for field, column in zip(fields, values, strict=True):
                if None in times:
                    pairs = zip(column, times, strict=True)
                    column = [value if time is not None else None for value, time in pairs]
                if self._users.rows is not None:
                    column = [column[row] for row in self._users.rows]
                columns[f"{self._views[view]}__{field}"] = column
        return columns


def asks_on_demand(features: list[str] | FeatureService) -> bool:
    """Return whether a request names a view that may be one of Palate's on-demand views."""
    if isinstance(features, FeatureService):
        return any(is_on_demand_view(p.name) for p in features.feature_view_projections)
    return any(is_on_demand_view(ref.partition(":")[0]) for ref in features)


def prepare(
    config: RepoConfig,
    features: list[str] | FeatureService,
    entity_rows: Any,
    registry: Any,
    project: str,
    full_feature_names: bool,
    key_suffix: bytes,
) -> Request | None:
    """Return a request, resolved as Feast resolves it, or None: it is one for Feast's path.

    Parameters
    ----------
    config, features, entity_rows, registry, project, full_feature_names
        As Feast hands them to ``OnlineStore.get_online_features``.
    key_suffix : bytes
        What the store appends to an entity key.

    Raises
    ------
    Exception
        Whatever Feast raises for such a request.
    """
    columnar = _columnar(entity_rows)
    if columnar is None:
        return None
    resolved = utils._prepare_entities_to_read_from_online_store(
        registry=registry,
        project=project,
        features=features,
        entity_values=columnar,
        full_feature_names=full_feature_names,
        native_entity_values=True,
    )
    join_key_values, grouped, join_keys, on_demand, refs, named, response = resolved
    asked = _by_view(refs)
    wanted = _wanted(on_demand, asked)
    if wanted is None:
        return None
    views = {view.projection.name_to_use(): (view, names) for view, names in grouped}
    needed = _needed(wanted)
    for name, fields in needed.items():
        if name not in views or not _is_plain(views[name][0]) or fields - set(views[name][1]):
            return None
    users = _users(join_key_values, config, key_suffix)
    given = _given(response, {name for one in wanted for name in one.spec.request_context})
    if users is None or given is None:
        return None
    versioned = config.registry.enable_online_feature_view_versioning
    stored_as = {compute_versioned_name(views[name][0], versioned): name for name in needed}
    return Request(
        fields={stored: tuple(sorted(needed[name])) for stored, name in stored_as.items()},
        direct=[
            (view, [name for name in names if name in asked[key]])
            for key, (view, names) in views.items()
            if key in asked
        ],
        grouped=grouped,
        join_key_values=join_key_values,
        join_keys=join_keys,
        response=response,
        _users=users,
        _views=stored_as,
        _wanted=wanted,
        _given=given,
        _named=named,
        _full=full_feature_names,
    )


def _columnar(entity_rows: Any) -> Any:
    """Return rows as columns, as Feast does; None where it would raise, or there is no row."""
    if not isinstance(entity_rows, list):
        return entity_rows
    if not entity_rows or any(row.keys() != entity_rows[0].keys() for row in entity_rows):
        return None
    return {key: [row[key] for row in entity_rows] for key in entity_rows[0]}


def _by_view(refs: Sequence[str]) -> dict[str, set[str]]:
    """Return the features of each view that are asked for, views in the order of the request."""
    asked: dict[str, set[str]] = {}
    for ref in refs:
        view, version, feature = utils._parse_feature_ref(ref)
        asked.setdefault(view if version is None else f"{view}@v{version}", set()).add(feature)
    return asked


def _wanted(
    on_demand: Sequence[OnDemandFeatureView], asked: Mapping[str, set[str]]
) -> list[_Wanted] | None:
    """Return the on-demand views in Feast's order, or None where one is not Palate's."""
    wanted = {}
    for view in on_demand:
        spec = spec_of(view)
        renamed = view.projection.name_alias or view.projection.version_tag is not None
        stored = view.write_to_online_store or view.aggregations
        features = frozenset(asked.get(view.name, ()))
        if spec is None or renamed or stored or not features <= set(EMBEDDING_FEATURES):
            return None
        wanted[view.name] = _Wanted(spec, features)
    return [wanted[name] for name in asked if name in wanted]


def _needed(wanted: Sequence[_Wanted]) -> dict[str, set[str]]:
    needed: dict[str, set[str]] = {}
    for one in wanted:
        for name, _, _ in encoder_columns(one.spec.store, one.spec.encoder_version):
            view, _, field = name.partition("__")
            needed.setdefault(view, set()).add(field)
    return needed


def _is_plain(view: FeatureView) -> bool:
    """Return whether a raw view is read under its own name, by the user alone."""
    projection = view.projection
    renamed = projection.name_alias or projection.join_key_map
    # Not `view.join_keys`: Feast checks its type at run time, element by element.
    keys = [column.name for column in view.entity_columns]
    return not renamed and projection.version_tag is None and keys == [USER_KEY]


def _users(join_key_values: Any, config: RepoConfig, suffix: bytes) -> _Users | None:
    if set(join_key_values) != {USER_KEY}:
        return None
    values = join_key_values[USER_KEY]
    kinds = {value.WhichOneof("val") for value in values}
    if len(kinds) != 1 or not kinds <= _KINDS.keys():
        return None
    (kind,) = kinds
    ids = [getattr(value, kind) for value in values]
    each = {user: position for position, user in enumerate(dict.fromkeys(ids))}
    feast_kind, arrow_kind = _KINDS[kind]
    keys = entity_keys(
        [(USER_KEY, feast_kind, pa.array(each, arrow_kind))],
        config.entity_key_serialization_version,
        suffix,
    )
    rows = None if len(each) == len(ids) else [each[user] for user in ids]
    return _Users(ids, tuple(map(str, ids)), keys, rows)


def _given(response: GetOnlineFeaturesResponse, names: set[str]) -> dict[str, ScalarColumn] | None:
    """Return what the request gives, or None where something is no string."""
    given = {}
    for name, vector in zip(response.metadata.feature_names.val, response.results, strict=True):
        if name in names:
            kinds = [value.WhichOneof("val") for value in vector.values]
            if not set(kinds) <= {"string_val", None}:
                return None
            strings = np.array([value.string_val for value in vector.values], object)
            given[name] = ScalarColumn(strings, np.array([kind is not None for kind in kinds]))
    return given


def _embeddings(encoded: Encoded, spec: OnDemandSpec) -> list[bytes]:
    values = float_values(encoded.embedding)
    for row in encoded.errors:
        values[row] = b""
    return values


def _numbers(numbers: npt.NDArray[np.int64]) -> list[bytes]:
    return value_bytes(pa.array(numbers), "INT64")


_SERIALISED: dict[str, Callable[[Encoded, OnDemandSpec], list[bytes]]] = {
    "embedding": _embeddings,
    "as_of": lambda encoded, spec: _numbers(encoded.as_of),
    "space": lambda encoded, spec: _numbers(np.full(len(encoded.as_of), spec.space)),
    "encoder_version": lambda encoded, spec: (
        value_bytes(pa.array([spec.encoder_version]), "STRING") * len(encoded.as_of)
    ),
    "status": lambda encoded, spec: value_bytes(pa.array(encoded.status, pa.string()), "STRING"),
    "n_events": lambda encoded, spec: _numbers(encoded.n_events),
}
