"""Retrained spaces measured against the first one: free, and trained to be compatible with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from encoder.errors import DataFault, LedgerConflict
from materialize.batch import materialize_space
from materialize.bridges import serve_bridge
from materialize.context import Context
from materialize.features import build_features
from materialize.stability import StabilityReport, after_first_run, measure_stability
from materialize.train import train_space
from tests.e2e.conftest import END, Raw, Story, apply, build_story
from transforms.clean import CleanTables

pytestmark = pytest.mark.slow

LONGER = {"training": {"max_epochs": 12, "device": "cpu"}}
OTHER_SEED = {
    "autoencoder": {"embedding_dim": 16, "hidden": [48], "seed": 1},
    "training": {"max_epochs": 12, "device": "cpu", "seed": 1},
}


def _configured(repo: Path, **changes: Any) -> Context:
    """Return a repository with other fields of palate.yaml; None takes one away."""
    path = repo / "palate.yaml"
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return Context(repo)


def _retrained(story: Story, **changes: Any) -> Context:
    """Train another space and materialise it as the first one was."""
    context = _configured(story.repo, **changes)
    where = (context.store, context.settings, context.ledger)
    space = train_space(*where, progress=False).space
    apply(story.repo)
    context.store.refresh_registry()  # type: ignore[no-untyped-call]
    for from_history in (True, False):
        materialize_space(*where, space, end=END, from_history=from_history, progress=False)
    return context


@pytest.fixture(scope="module")
def three(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Space 1; space 2 with another seed; space 3 with that seed, compatible with space 1."""
    story = build_story(tmp_path_factory.mktemp("three") / "repo", raw, END, **LONGER)
    _retrained(story, **OTHER_SEED)
    context = _retrained(story, compatibility={"space": 1})
    return Story(story.repo, context, context.ledger.space(1), story.truth)


@pytest.fixture(scope="module")
def measured(three: Story) -> dict[int, StabilityReport]:
    where = (three.context.store, three.context.settings, three.context.ledger)
    return {
        number: measure_stability(
            *where, three.context.ledger.space(number), three.space, n_bootstrap=200, progress=False
        )
        for number in (2, 3)
    }


def _figure(report: StabilityReport, *names: str) -> float:
    found: Any = report.figures
    for name in names:
        found = found[name]
    return float(found)


def test_an_old_head_loses_much_on_a_free_retraining_and_little_through_the_bridge(
    measured: dict[int, StabilityReport],
) -> None:
    report = measured[2]
    assert report.figures["history"] is True
    assert _figure(report, "cosine", "before", "value") < 0.3
    assert _figure(report, "cosine", "after", "value") > 0.7
    known = _figure(report, "probe", "auc_macro", "old", "low")
    assert known > 0.55
    # 160 test users: the intervals are wide, and the loss is beyond them all the same.
    assert _figure(report, "probe", "loss", "unbridged", "low") > 0.0
    unbridged = _figure(report, "probe", "loss", "unbridged", "value")
    assert _figure(report, "probe", "loss", "bridged", "value") < unbridged / 2


def test_compatible_training_needs_no_bridge(measured: dict[int, StabilityReport]) -> None:
    free, held = measured[2], measured[3]
    assert _figure(held, "cosine", "before", "value") > 0.9
    assert _figure(held, "overlap", "before", "value") > _figure(free, "overlap", "after", "value")
    unbridged = _figure(held, "probe", "loss", "unbridged", "value")
    assert unbridged < 0.03 < _figure(free, "probe", "loss", "unbridged", "value")


def test_spaces_and_artifacts_say_what_they_were_compatible_with(three: Story) -> None:
    facts = [space.facts.get("compatibility") for space in three.context.ledger.spaces()]
    assert facts == [None, None, {"space": 1, "weight": 1.0}]


def test_a_training_without_the_section_is_the_one_before_there_was_any(three: Story) -> None:
    """The same key: it is found, not trained again."""
    context = three.context
    again = _configured(three.repo, compatibility=None)
    found = train_space(context.store, again.settings, context.ledger, progress=False)
    assert (found.space.number, found.new) == (2, False)
    _configured(three.repo, compatibility={"space": 1})


def test_the_recorded_loss_decides_whether_a_bridge_serves(
    three: Story, measured: dict[int, StabilityReport]
) -> None:
    where = (three.context.store, three.context.settings, three.context.ledger)
    high = _figure(measured[2], "probe", "loss", "bridged", "high")
    reason = {"who": "test", "why": "a consumer lags"}
    with pytest.raises(LedgerConflict, match=r"Bridge .* from space 2 to space 1: a head of space"):
        serve_bridge(*where, 2, 1, max_loss=0.9 * high, **reason)
    served = serve_bridge(*where, 2, 1, max_loss=1.1 * high, **reason)
    assert (served.state, served.forced) == ("serving", False)
    assert after_first_run(*where, three.context.ledger.space(3), progress=False) is not None
    # Space 3's older ready one is space 2: that pair was new.
    assert three.context.ledger.bridges(source=3, target=2) != []


def test_an_encoder_of_other_raw_features_cannot_be_stayed_compatible_with(
    three: Story, tmp_path: Path
) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(three.repo, repo)
    narrow = _configured(repo, autoencoder={"embedding_dim": 8}, compatibility={"space": 1})
    with pytest.raises(DataFault, match="space 1 cannot be stayed compatible with: its embedding"):
        train_space(narrow.store, narrow.settings, narrow.ledger, progress=False)
    other = _configured(repo, seed=5)
    settings = other.settings
    build_features(
        settings.dataset,
        CleanTables(settings.data_dir),
        settings.features_dir,
        seed=5,
        progress=False,
    )
    expected = r"its modality encoders are .* no row can be read by both encoders.*stability"
    with pytest.raises(DataFault, match=expected):
        train_space(other.store, settings, other.ledger, progress=False)
