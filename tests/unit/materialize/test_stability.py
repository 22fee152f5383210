"""A new space measured against an earlier one, and the bridge that may serve or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ortho_group

from encoder.alignment import orthogonal_map
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.errors import ArtifactError, DataFault, LedgerConflict, SpaceMismatch
from materialize.bridges import serve_bridge
from materialize.embedding_rows import embedding_schema
from materialize.evaluate.split import training_users
from materialize.ledger import Space
from materialize.stability import (
    StabilityReport,
    after_first_run,
    measure_stability,
    read_anchors,
)
from tests.spaces import Spaces
from transforms.names import bridged_view, stored_view

DIM = 6
DAY_US = 86_400_000_000
ROTATION = np.asarray(ortho_group.rvs(DIM, random_state=0))


@pytest.fixture
def spaces(tmp_path: Path) -> Spaces:
    return Spaces.make(tmp_path / "repo")


def _vectors(users: Sequence[Any], day: int = 0) -> npt.NDArray[np.float64]:
    """Return vectors that only user and day decide."""
    rows = [np.random.default_rng((int(user), day)).standard_normal(DIM) for user in users]
    return np.array(rows) * np.linspace(1.0, 2.0, DIM) + 0.5


def _write(
    spaces: Spaces,
    space: Space,
    users: Sequence[Any],
    vectors: npt.NDArray[Any],
    *,
    day: int = 0,
    created: int = 1,
) -> None:
    """Write one run's rows of a space offline, ``as_of`` the ``day`` after 1970-01-01."""
    n, kind = len(users), pa.timestamp("us", "UTC")
    as_of = pa.array(np.full(n, (day + 1) * DAY_US))
    columns = [
        pa.array(users, spaces.user_type),
        pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32())),
        as_of,
        pa.array(np.full(n, space.number)),
        pa.array([space.encoder_version] * n),
        pa.array(["warm"] * n),
        pa.array(np.ones(n, np.int64)),
        as_of.cast(kind),
        pa.array(np.full(n, created * DAY_US)).cast(kind),
    ]
    table = pa.Table.from_arrays(columns, schema=embedding_schema(spaces.user_type))
    folder = spaces.settings.offline_dir / stored_view(space.number) / f"run-{day}-{created}"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "rows.parquet")


def _commit(spaces: Spaces, space: Space, *, from_history: bool = False) -> Space:
    run_id = f"{space.number:08x}{int(from_history):08x}"
    plan = {"from_history": from_history}
    view = stored_view(space.number)
    spaces.ledger.begin_run(run_id, view, run_id, plan, space=space.number)
    spaces.ledger.commit_run(run_id, {})
    return spaces.ledger.space(space.number)


@pytest.fixture
def pair(spaces: Spaces) -> tuple[Space, Space]:
    """Two ready spaces; the second is the first one rotated and shifted."""
    users = range(100)
    old, new = spaces.register(), spaces.register()
    _write(spaces, old, users, _vectors(users))
    _write(spaces, new, users, _vectors(users) @ ROTATION + 3.0)
    return _commit(spaces, old), _commit(spaces, new)


def _measure(spaces: Spaces, pair: tuple[Space, Space], **how: Any) -> StabilityReport:
    old, new = pair
    where = (spaces.context.store, spaces.settings, spaces.ledger)
    return measure_stability(*where, new, old, n_bootstrap=50, progress=False, **how)


# --- anchors


def test_anchors_are_users_with_rows_of_both_spaces_at_the_same_moment(spaces: Spaces) -> None:
    old, new = spaces.register(), spaces.register()
    _write(spaces, old, range(10), _vectors(range(10)))
    _write(spaces, new, range(5, 12), -_vectors(range(5, 12)))
    _write(spaces, old, range(5, 7), _vectors(range(5, 7), 1), day=1)  # the new space has no such
    _write(spaces, old, [8], _vectors([8], 2), day=2)
    _write(spaces, new, [8], -_vectors([8], 2), day=2)  # a newer moment of both
    found = read_anchors(spaces.settings, new, old, 100, 0)
    order = np.argsort(found.user_id)
    assert found.user_id[order].tolist() == [5, 6, 7, 8, 9]
    expected = np.concatenate([_vectors([5, 6, 7]), _vectors([8], 2), _vectors([9])])
    assert np.array_equal(found.old[order], expected.astype(np.float32))
    assert np.array_equal(found.new, -found.old)


def test_of_rows_written_twice_the_later_counts(spaces: Spaces) -> None:
    old, new = spaces.register(), spaces.register()
    for created, sign in ((1, 1.0), (3, 2.0), (2, 5.0)):
        _write(spaces, old, range(4), sign * _vectors(range(4)), created=created)
    _write(spaces, new, range(4), _vectors(range(4)))
    found = read_anchors(spaces.settings, new, old, 100, 0)
    assert np.array_equal(found.old, 2 * found.new)


def test_the_draw_is_the_seeds_and_bounded(spaces: Spaces) -> None:
    old, new = spaces.register(), spaces.register()
    for space in (old, new):
        _write(spaces, space, range(50), _vectors(range(50)))
    draws = [read_anchors(spaces.settings, new, old, 20, seed) for seed in (0, 0, 1)]
    assert [len(draw.user_id) for draw in draws] == [20, 20, 20]
    assert draws[0].user_id.tolist() == draws[1].user_id.tolist()
    assert set(draws[0].user_id) != set(draws[2].user_id)
    assert np.array_equal(draws[2].old, _vectors(draws[2].user_id).astype(np.float32))


def test_users_may_be_strings(tmp_path: Path) -> None:
    spaces = Spaces.make(tmp_path / "repo", user_type="STRING")
    old, new = spaces.register(), spaces.register()
    users = [str(k) for k in range(40)]
    for space in (old, new):
        _write(spaces, space, users, _vectors(users))
    assert sorted(read_anchors(spaces.settings, new, old, 100, 0).user_id) == sorted(users)
    assert _measure(spaces, (old, new)).figures["anchors"]["users"] == 40


def test_too_few_common_users_are_refused_with_a_remedy(spaces: Spaces) -> None:
    old, new = spaces.register(), spaces.register()
    expected = "0 user.s. have rows of spaces 2 and 1 at the same moment.*palate materialize"
    with pytest.raises(DataFault, match=expected):
        _measure(spaces, (old, new))
    for space in (old, new):
        _write(spaces, space, range(5), _vectors(range(5)))
    with pytest.raises(DataFault, match=r"5 user.s. have rows .* at least 12 expected"):
        _measure(spaces, (old, new))
    assert spaces.ledger.bridges() == []


# --- the measurement


def test_a_planted_rotation_is_measured_and_recorded(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    old, new = pair
    report = _measure(spaces, pair)
    figures = report.figures
    held_out = int((~training_users(np.arange(100))).sum())
    assert figures["anchors"] == {
        "users": 100,
        "fit": 100 - held_out,
        "held_out": held_out,
        "seed": 0,
    }
    assert figures["cosine"]["after"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert abs(figures["cosine"]["before"]["value"]) < 0.9
    assert figures["overlap"]["neighbours"] == (held_out - 1) // 10
    assert figures["overlap"]["after"]["value"] == 1.0
    assert figures["overlap"]["before"]["value"] < 1.0  # the shift changes directions
    (bridge,) = spaces.ledger.bridges()
    assert (bridge.source, bridge.target, bridge.state) == (new.number, old.number, "measured")
    assert bridge.figures == json.loads(json.dumps(figures))
    stored = BridgeStore(spaces.settings.artifacts_url).load(bridge.version)
    assert (stored.source, stored.target) == (new.encoder_version, old.encoder_version)
    unseen = _vectors(range(500, 520))
    assert np.allclose(stored.apply(unseen @ ROTATION + 3.0), unseen, atol=1e-4)
    assert report.to_dict()["bridge"] == bridge.version


def test_measuring_again_gives_the_same_bridge_and_newer_rows_another(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    first = _measure(spaces, pair)
    assert _measure(spaces, pair) == first
    assert len(spaces.ledger.bridges()) == 1
    old, new = pair
    _write(spaces, old, range(100), _vectors(range(100), 1), day=1)
    _write(spaces, new, range(100), _vectors(range(100), 1) @ ROTATION + 3.1, day=1)
    second = _measure(spaces, pair)
    assert second.bridge.version != first.bridge.version
    assert len(spaces.ledger.bridges()) == 2


def test_without_labels_the_probe_is_none_and_the_reason_is_kept(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    figures = _measure(spaces, pair).figures
    assert figures["probe"] is None
    assert "Run `palate features build` first" in figures["no_probe"]


def test_spaces_of_other_widths_are_measured_without_a_cosine_before(spaces: Spaces) -> None:
    old, new = spaces.register(), spaces.register()
    users = range(60)
    _write(spaces, old, users, _vectors(users))
    _write(spaces, new, users, _vectors(users) @ ROTATION[:, :4])
    figures = _measure(spaces, (old, new)).figures
    assert figures["cosine"]["before"] is None
    assert figures["cosine"]["after"]["value"] > 0.5


def test_a_space_is_not_measured_against_itself(spaces: Spaces, pair: tuple[Space, Space]) -> None:
    with pytest.raises(ValueError, match="Space 1 given twice"):
        _measure(spaces, (pair[0], pair[0]))


# --- after a run


def _after(spaces: Spaces, space: Space) -> StabilityReport | None:
    where = (spaces.context.store, spaces.settings, spaces.ledger)
    return after_first_run(*where, space, progress=False)


def test_the_first_run_of_a_second_space_measures_it_once(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    old, new = pair
    assert _after(spaces, old) is None  # nothing is older
    report = _after(spaces, new)
    assert report is not None
    assert (report.bridge.source, report.bridge.target) == (2, 1)
    assert _after(spaces, new) is None


def test_it_is_measured_again_when_both_have_their_history(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    old, new = pair
    assert _after(spaces, new) is not None
    _commit(spaces, new, from_history=True)
    assert _after(spaces, new) is None  # the older one has none yet
    _commit(spaces, old, from_history=True)
    report = _after(spaces, new)
    assert report is not None
    assert report.figures["history"] is True
    assert _after(spaces, new) is None
    (bridge,) = spaces.ledger.bridges()  # the same map with newer figures
    assert bridge.figures["history"] is True


def test_what_stops_the_measurement_does_not_stop_the_run(
    spaces: Spaces, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = spaces.register(), spaces.register()
    _commit(spaces, old)
    _commit(spaces, new)
    assert _after(spaces, spaces.ledger.space(2)) is None
    assert "space 2 is not measured against space 1: 0 user(s)" in caplog.text


# --- serving


def _serve(spaces: Spaces, **how: Any) -> Any:
    where = (spaces.context.store, spaces.settings, spaces.ledger)
    options = {"max_loss": 0.01, "who": "ada", "why": "home ranking lags"} | how
    return serve_bridge(*where, 2, 1, **options)


def _with_loss(spaces: Spaces, report: StabilityReport, high: float) -> None:
    loss = {"value": high / 2, "low": 0.0, "high": high}
    bridge = report.bridge
    spaces.ledger.record_bridge(
        bridge.version,
        source=bridge.source,
        target=bridge.target,
        url=bridge.url,
        figures={**report.figures, "probe": {"loss": {"bridged": loss}}},
        who="ada",
    )


def test_a_loss_within_the_bound_serves_and_the_record_says_why(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    report = _measure(spaces, pair)
    _with_loss(spaces, report, 0.01)
    planned = _serve(spaces, dry_run=True)
    assert (planned.state, planned.dry_run, planned.forced) == ("measured", True, False)
    assert spaces.ledger.bridge(planned.bridge).state == "measured"
    served = _serve(spaces)
    assert (served.state, served.view) == ("serving", bridged_view(1, 2))
    assert served.loss["high"] == 0.01
    assert _serve(spaces) == served  # again: nothing changes
    (last,) = [t for t in spaces.ledger.transitions("bridge") if t.after == "serving"]
    assert (last.who, last.why) == (
        "ada",
        "home ranking lags (loss at most 0.0100 AUC, bound 0.01)",
    )


def test_a_loss_over_the_bound_is_refused_with_the_numbers(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    _with_loss(spaces, _measure(spaces, pair), 0.02)
    expected = r"loses 0\.0100 macro AUC, 95% interval 0\.0000 to 0\.0200; at most 0\.01 is allowed"
    for dry_run in (True, False):
        with pytest.raises(LedgerConflict, match=expected):
            _serve(spaces, dry_run=dry_run)
    assert spaces.ledger.bridges()[0].state == "measured"
    assert _serve(spaces, max_loss=0.02).state == "serving"


def test_an_unknown_loss_is_refused_unless_forced_with_a_reason(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    _measure(spaces, pair)
    with pytest.raises(
        LedgerConflict, match=r"was not measured .*palate features build.*stability 2"
    ):
        _serve(spaces)
    with pytest.raises(ValueError, match="force without a reason"):
        _serve(spaces, force=True, why=" ")
    served = _serve(spaces, force=True)
    assert (served.state, served.forced, served.loss) == ("serving", True, None)
    (last,) = [t for t in spaces.ledger.transitions("bridge") if t.after == "serving"]
    assert last.why == "home ranking lags (loss not measured, bound 0.01, forced)"


def test_what_was_never_measured_is_served_by_no_force(
    spaces: Spaces, pair: tuple[Space, Space]
) -> None:
    expected = "No bridge from space 2 to space 1 was measured. Run `palate spaces stability 2"
    with pytest.raises(LedgerConflict, match=expected):
        _serve(spaces, force=True)


def test_a_lost_map_is_not_served(spaces: Spaces, pair: tuple[Space, Space]) -> None:
    report = _measure(spaces, pair)
    shutil.rmtree(report.bridge.url.removeprefix("file://"))
    with pytest.raises(ArtifactError, match=f"Unknown bridge '{report.bridge.version}'"):
        _serve(spaces, force=True)
    assert _measure(spaces, pair) == report  # what the message says mends it
    assert _serve(spaces, force=True).state == "serving"


def test_a_map_of_other_encoders_is_not_served(spaces: Spaces, pair: tuple[Space, Space]) -> None:
    old, new = pair
    vectors = _vectors(range(20))
    # From the earlier space to the newer one, recorded the wrong way round.
    backwards = BridgeArtifact(
        old.encoder_version, new.encoder_version, orthogonal_map(vectors, vectors)
    )
    url = BridgeStore(spaces.settings.artifacts_url).save(backwards)
    names = {"source": new.number, "target": old.number}
    spaces.ledger.record_bridge(
        backwards.version, **names, url=url, figures={"probe": None}, who="ada"
    )
    with pytest.raises(SpaceMismatch, match=f"joins encoders {old.encoder_version} and"):
        _serve(spaces, force=True)


@pytest.mark.parametrize("bound", [-0.1, float("nan")])
def test_an_impossible_bound_is_refused(
    spaces: Spaces, pair: tuple[Space, Space], bound: float
) -> None:
    with pytest.raises(ValueError, match=r"max_loss .* at least 0 expected"):
        _serve(spaces, max_loss=bound)
