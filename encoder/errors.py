"""Errors that a caller can act on.

::

    EmbeddingError
    ├── TransientError            worth a retry: the same call may succeed later
    │   └── TimedOut              the time that the caller gave is over
    └── TerminalError             a retry changes nothing: the input or the state must change first
        ├── DataFault             the user's data cannot be used as it is
        ├── MalformedInput        one user's raw features do not fit the encoder's schema
        ├── ArtifactError         an encoder artifact is missing, damaged or of an unknown format
        ├── CorruptValue          a stored value is not what its feature's type says
        ├── CorruptState          the streamed state of one user cannot be read
        ├── StoreRefused          a store answers, but not this question: password, permission
        ├── SpaceMismatch         vectors or raw features of another space or modality version
        ├── TrainingFault         training cannot go on from here
        ├── LedgerConflict        the ledger's state does not allow the step
        ├── StreamConflict        the event stream's state or set-up does not allow the step
        ├── VerificationFailed    what was written is not what is read back
        └── EvaluationFault       labels and features do not fit, or features know the label

Bad arguments are ``ValueError`` or ``TypeError``; the tree is for the state of the world.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "CorruptState",
    "CorruptValue",
    "DataFault",
    "EmbeddingError",
    "EvaluationFault",
    "LedgerConflict",
    "MalformedInput",
    "SpaceMismatch",
    "StoreRefused",
    "StreamConflict",
    "TerminalError",
    "TimedOut",
    "TrainingFault",
    "TransientError",
    "VerificationFailed",
]


class EmbeddingError(Exception):
    """Base of every Palate error; subclasses are transient or terminal."""


class TransientError(EmbeddingError):
    """The same call may succeed later; jobs retry by this type."""


class TimedOut(TransientError):
    """The time that the caller gave for a call is over.

    Parameters
    ----------
    message : str
        What was waited for, and how long.
    waited_for : str
        What did not answer, for example ``"Redis at 127.0.0.1:6379"``.
    seconds : float
        What the caller gave for the whole call.
    """

    def __init__(self, message: str, *, waited_for: str, seconds: float) -> None:
        super().__init__(message)
        self.waited_for = waited_for
        self.seconds = seconds


class TerminalError(EmbeddingError):
    """A retry changes nothing until the input or the state changes."""


class DataFault(TerminalError):
    """The user's data has a fault that makes it unusable; the message lists every fatal one."""


class MalformedInput(TerminalError):
    """One user's raw features do not fit the encoder's schema.

    Parameters
    ----------
    message : str
        What was given, what was expected, what to do.
    column : str
        Feature column as ``view__field``.
    row : int or None
        Zero-based row of the batch, where one row is at fault.
    user : str or None
        The row's user id, where the caller knows it.
    """

    def __init__(
        self, message: str, *, column: str, row: int | None = None, user: str | None = None
    ) -> None:
        super().__init__(message)
        self.column = column
        self.row = row
        self.user = user


class CorruptValue(TerminalError):
    """A value in the online store cannot be what a job of Palate or Feast wrote there.

    Parameters
    ----------
    message : str
        What was found, what was expected, what to do.
    view, field : str
        Feature view and feature.
    row : int
        Zero-based row of the read.
    user : str or None
        The row's user id, where the caller knows it.
    """

    def __init__(
        self, message: str, *, view: str, field: str, row: int, user: str | None = None
    ) -> None:
        super().__init__(message)
        self.view = view
        self.field = field
        self.row = row
        self.user = user


class CorruptState(TerminalError):
    """The streamed state of one user is not one that this release wrote.

    Parameters
    ----------
    message : str
        What was found, what was expected, what to do.
    user : int or str
        The user's id.
    """

    def __init__(self, message: str, *, user: int | str) -> None:
        super().__init__(message)
        self.user = user


class ArtifactError(TerminalError):
    """An encoder artifact is missing, damaged, or of a format this release does not read.

    Parameters
    ----------
    message : str
        What was given, what was expected, what to do.
    encoder_version : str or None
        The 12-hex-digit version that was asked for, where one was.
    """

    def __init__(self, message: str, *, encoder_version: str | None = None) -> None:
        super().__init__(message)
        self.encoder_version = encoder_version


class StoreRefused(TerminalError):
    """A store answers, but not this question: a wrong password, a missing permission."""


class SpaceMismatch(TerminalError):
    """Vectors of one space, or raw features of one modality version, met another's."""


class TrainingFault(TerminalError):
    """The loss is not finite, or the checkpoint in the way belongs to another run."""


class LedgerConflict(TerminalError):
    """The ledger's state does not allow the step that was asked for."""


class StreamConflict(TerminalError):
    """The event stream's state or set-up does not allow the step that was asked for."""


class VerificationFailed(TerminalError):
    """What was read back from a store is not what was written."""


class EvaluationFault(TerminalError):
    """An evaluation would be wrong: labels and features do not fit, or features know the label."""
