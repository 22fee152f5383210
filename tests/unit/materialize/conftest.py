"""One tiny applied feature repository for all tests here: Feast takes its time."""

from __future__ import annotations

import pytest

from materialize.ledger import Space
from tests.repositories import TinyRepository


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRepository:
    """A repository with integer user ids; tests share it, so each uses users of its own."""
    return TinyRepository.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def space(tiny: TinyRepository) -> Space:
    """Space 1 of the shared repository, applied."""
    return tiny.apply_space(1, tiny.save_encoder())
