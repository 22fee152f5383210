"""Settings of a serving process: where they come from, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from transforms.serving import ServingSettings, configure, serving_settings


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    configure()


def test_without_a_setting_four_encoders_are_kept_and_faults_raise() -> None:
    assert ServingSettings.of_environment({}) == ServingSettings(4, "raise")


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALATE_KEEP_ENCODERS", "9")
    monkeypatch.setenv("PALATE_ON_ERROR", "row")
    assert configure() == ServingSettings(9, "row")
    assert configure(keep=2) == ServingSettings(2, "row")
    assert configure(on_error="raise") == ServingSettings(9, "raise")
    assert serving_settings() == ServingSettings(9, "raise")


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many", ""])
def test_a_number_of_encoders_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="PALATE_KEEP_ENCODERS="):
        ServingSettings.of_environment({"PALATE_KEEP_ENCODERS": value})


def test_another_way_to_treat_faults_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PALATE_ON_ERROR='skip' .* one of raise, row"):
        ServingSettings.of_environment({"PALATE_ON_ERROR": "skip"})
    with pytest.raises(ValueError, match="on_error 'skip' was given"):
        configure(on_error="skip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep 0 was given"):
        configure(keep=0)
