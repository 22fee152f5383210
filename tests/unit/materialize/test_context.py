"""Who runs a command."""

from __future__ import annotations

import getpass

import pytest

from materialize.context import operator_name


def test_the_environment_names_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALATE_USER", "nightly-job")
    assert operator_name() == "nightly-job"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_name_it_is_the_account(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("PALATE_USER", raising=False)
    if value is not None:
        monkeypatch.setenv("PALATE_USER", value)
    assert operator_name() == getpass.getuser()
