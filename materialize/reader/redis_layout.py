"""How Feast lays users out in Redis, as commands and answers; no connection in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    InvalidResponse,
    MaxConnectionsError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from encoder.errors import StoreRefused
from materialize.reader.fields import Found, Users, Wanted, user_column
from materialize.stores.values import entity_keys

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import RepoConfig

__all__ = [
    "TRANSIENT",
    "RedisLayout",
    "as_columns",
    "hmget_commands",
    "hmget_frame",
    "refusal",
    "require_answers",
]

TRANSIENT = (
    # Refused, reset, closed; a server that loads its data; a failover; a garbled answer, after
    # which the connection was closed.
    *(ConnectionError, TimeoutError, BusyLoadingError, ClusterDownError, TryAgainError),
    *(MaxConnectionsError, InvalidResponse, RedisClusterException, OSError),
)
"""Errors that another attempt may mend."""

_WRONG_TYPE = "WRONGTYPE"


class RedisLayout:
    """The keys of users and the hash fields of features, for one repository.

    Parameters
    ----------
    config : RepoConfig

    Notes
    -----
    State: what the commands of a question end with, by question.
    """

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._suffix = config.project.encode("utf-8")
        self._asked: dict[tuple[tuple[str, tuple[str, ...]], ...], _Question] = {}

    def keys(self, wanted: Sequence[Wanted], users: Users) -> list[bytes]:
        """Return one key a user.

        Raises
        ------
        TypeError
            An id is not of the user entity's type.
        """
        question = self._question(wanted)
        ids: pa.Array = user_column(users, text=question.kind == "STRING")
        version = self._config.entity_key_serialization_version
        return entity_keys([(question.entity, question.kind, ids)], version, self._suffix)

    def hash_fields(self, wanted: Sequence[Wanted]) -> tuple[bytes, ...]:
        """Return the hash field of each wanted feature."""
        return self._question(wanted).fields

    def commands(self, wanted: Sequence[Wanted], keys: Sequence[bytes]) -> bytes:
        """Return one HMGET a key, as Redis reads them from the wire."""
        question = self._question(wanted)
        return hmget_commands(keys, question.head, question.tail)

    def _question(self, wanted: Sequence[Wanted]) -> _Question:
        versioned = self._config.registry.enable_online_feature_view_versioning
        # By name: to compare Feast's views takes longer than to read them.
        names = tuple([(compute_versioned_name(one.view, versioned), one.fields) for one in wanted])
        question = self._asked.get(names)
        if question is None:
            (entity,) = wanted[0].view.entity_columns
            fields = tuple(
                _mmh3(f"{view}:{field}") for view, features in names for field in features
            )
            question = _Question(entity.name, entity.dtype.to_value_type().name, fields)
            self._asked[names] = question
        return question


@dataclass(frozen=True)
class _Question:
    """What the commands of a question have in common."""

    entity: str
    kind: str
    """Name of the entity's ``ValueType``."""
    fields: tuple[bytes, ...]

    @cached_property
    def head(self) -> bytes:
        """What stands before the length of a key."""
        return hmget_frame(self.fields)[0]

    @cached_property
    def tail(self) -> bytes:
        """What stands behind a key."""
        return hmget_frame(self.fields)[1]


def hmget_frame(fields: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return what stands before the length of a key, and behind the key, in an HMGET of fields."""
    head = b"*%d\r\n$5\r\nHMGET\r\n$" % (2 + len(fields))
    return head, b"\r\n" + b"".join([b"$%d\r\n%b\r\n" % (len(f), f) for f in fields])


def hmget_commands(keys: Sequence[bytes], head: bytes, tail: bytes) -> bytes:
    """Return one HMGET a key, as Redis reads them from the wire; see `hmget_frame`."""
    if len({len(key) for key in keys}) == 1:
        before = head + b"%d\r\n" % len(keys[0])
        return before + (tail + before).join(keys) + tail
    return b"".join([head + b"%d\r\n" % len(key) + key + tail for key in keys])


def require_answers(answers: Sequence[Any], where: str) -> Sequence[Any]:
    """Return the answers to HMGET as they are, if Redis answered all of them.

    Parameters
    ----------
    answers : sequence
        One a user: a list of values, or the error that Redis answered with.
    where : str
        Which server, for the error.

    Raises
    ------
    RedisError
        An answer of the kinds in ``TRANSIENT``.
    StoreRefused
        Redis answered with an error that is not about one user.
    """
    for answer in answers:
        if isinstance(answer, Exception) and not _is_about_the_key(answer):
            raise refusal(answer, where)
    return answers


def as_columns(answers: Sequence[Any], width: int) -> Found:
    """Return such answers of ``width`` values each as columns."""
    broken = {
        row: "a Redis value that is no hash"
        for row, answer in enumerate(answers)
        if not isinstance(answer, list)
    }
    if broken:
        absent = [None] * width
        answers = [absent if row in broken else answer for row, answer in enumerate(answers)]
    return Found(list(zip(*answers, strict=True)) if len(answers) else [()] * width, broken)


def refusal(error: Exception, where: str) -> Exception:
    """Return a transient error as it is, and any other as `StoreRefused`."""
    refused = isinstance(error, AuthenticationError | AuthorizationError)
    if isinstance(error, TRANSIENT) and not refused:
        return error
    fault = StoreRefused(
        f"{where} refuses: {error}. Check user, password and permissions in "
        "`online_store.connection_string`."
    )
    fault.__cause__ = error
    return fault


def _is_about_the_key(answer: Exception) -> bool:
    return isinstance(answer, ResponseError) and str(answer).startswith(_WRONG_TYPE)
