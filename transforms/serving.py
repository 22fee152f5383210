"""How a serving process encodes: how many encoders it keeps, and what a faulty row does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

__all__ = ["OnError", "ServingSettings", "configure", "serving_settings"]

OnError: TypeAlias = Literal["raise", "row"]

KEEP_VARIABLE = "PALATE_KEEP_ENCODERS"
ON_ERROR_VARIABLE = "PALATE_ON_ERROR"


@dataclass(frozen=True)
class ServingSettings:
    """Settings of one process.

    Raises
    ------
    ValueError
        A setting is out of its range; the message names it as the caller wrote it.
    """

    keep: int = 4
    """Encoders held in memory, those used last: the live spaces, with one or two to spare."""
    on_error: OnError = "raise"
    """``raise``: a row that cannot be encoded fails the request, whose error names the user.
    ``row``: that row alone has no embedding and ``status="error"``; the others are answered."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep {self.keep!r} was given; at least 1 encoder is expected.")
        if self.on_error not in get_args(OnError):
            raise ValueError(
                f"on_error {self.on_error!r} was given; one of "
                f"{', '.join(sorted(get_args(OnError)))} is expected."
            )

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> ServingSettings:
        """Return the settings that ``PALATE_KEEP_ENCODERS`` and ``PALATE_ON_ERROR`` name.

        Raises
        ------
        ValueError
            A variable holds something else; the message names the variable.
        """
        keep = environ.get(KEEP_VARIABLE, str(cls.keep))
        if not keep.isdecimal() or int(keep) < 1:
            raise ValueError(f"{KEEP_VARIABLE}={keep!r} was given; a whole number from 1 is due.")
        on_error = environ.get(ON_ERROR_VARIABLE, cls.on_error)
        if on_error not in get_args(OnError):
            raise ValueError(
                f"{ON_ERROR_VARIABLE}={on_error!r} was given; one of "
                f"{', '.join(sorted(get_args(OnError)))} is expected."
            )
        return cls(int(keep), cast(OnError, on_error))


_settings: ServingSettings | None = None


def serving_settings() -> ServingSettings:
    """Return what `configure` said, else what the environment says; raises as that does."""
    global _settings
    if _settings is None:
        _settings = ServingSettings.of_environment()
    return _settings


def configure(*, keep: int | None = None, on_error: OnError | None = None) -> ServingSettings:
    """Set how this process encodes; what is left out comes from the environment.

    Parameters
    ----------
    keep : int, optional
        Encoders held in memory.
    on_error : {"raise", "row"}, optional

    Returns
    -------
    ServingSettings
        What holds from now on.

    Raises
    ------
    ValueError
        A value out of range, here or in the environment.
    """
    global _settings
    given = ServingSettings.of_environment()
    _settings = ServingSettings(
        given.keep if keep is None else keep,
        given.on_error if on_error is None else on_error,
    )
    return _settings
