"""A grid of contrastive trainings: resumable runs, and laws and tables of known answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.clue.training import train_clue
from encoder.errors import DataFault
from encoder.scaling_law import PowerLaw
from materialize.cli import main
from materialize.config import load_settings
from materialize.evaluate.labels import Labels
from materialize.scaling.downstream import Downstream
from materialize.scaling.fit import PAPER_LOSS, PF_DAY, fit_scaling, markdown
from materialize.scaling.grid import GRIDS, Grid, Size, find_grid
from materialize.scaling.plot import write_page
from materialize.scaling.run import ScalingPlan, plan_scaling, run_scaling
from materialize.scaling.tables import large_batches, table_of
from tests.unit.encoder.clue.planted import planted
from transforms.clean import CleanTables

TINY = Grid(
    "tiny", (Size(16, 1),), (8, 16), (3, 6), (1.0,), 2e8, vocabulary=300, max_item_tokens=6,
    validation_users=8, patience=2, warmup_steps=2,
)  # fmt: skip
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with clean tables of 200 users who have one taste in two services."""
    root = tmp_path_factory.mktemp("scaling")
    return _repository(root, "evaluation: {cutoff: 1970-04-01T00:00:00Z}\n")


def _repository(root: Path, further: str) -> Path:
    (root / "palate.yaml").write_text("dataset: dataset.yaml\ndata_dir: data\n")
    (root / "dataset.yaml").write_text(
        "name: planted\n"
        "events: {path: e.parquet, user: u, item: i, timestamp: t, service: s}\n" + further
    )
    rng = np.random.default_rng(0)
    n = 200
    taste = rng.integers(0, 4, n)
    user = np.repeat(np.arange(n), 12)
    shop = np.tile(np.arange(12) % 2, n)
    item = taste[user] * 10 + rng.integers(0, 10, len(user)) + 40 * shop
    tables = {
        "events": {
            "user_id": pa.array(user, pa.int64()),
            "item_id": pa.array(item, pa.int64()),
            "ts": pa.array(rng.integers(0, 80, len(user)) * DAY_US).cast(pa.timestamp("us", "UTC")),
            "service": pa.array(np.where(shop == 1, "shop", "news").tolist()),
        },
        "users": {"user_id": pa.array(np.arange(n), pa.int64())},
        "items": {
            "item_id": pa.array(np.arange(80), pa.int64()),
            "text": [
                f"{'shop' if k >= 40 else 'news'} kind {'abcd'[k % 40 // 10]}" for k in range(80)
            ],
            "tags": pa.array([["abcd"[k % 40 // 10]] for k in range(80)]),
        },
    }
    for name, columns in tables.items():
        folder = root / "data" / "clean" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / "part-0.parquet")
    CleanTables(root / "data").report.write_text("{}")
    return root


def _plan(repo: Path, grid: Grid = TINY) -> ScalingPlan:
    return plan_scaling(load_settings(repo), grid)


def test_a_grid_crosses_sizes_with_batches_and_varies_the_rest_alone() -> None:
    grid = Grid("x", (Size(32, 1), Size(64, 2)), (8, 16, 32), (4, 8), (0.5, 1.0), 1e9)
    points = grid.points()
    assert len({point.name for point in points}) == len(points) == 2 * (3 + 1 + 1)
    assert {p.batch_size for p in points if p.max_events == 8 and p.user_share == 1} == {8, 16, 32}
    assert all(p.batch_size == 16 for p in points if p.max_events == 4 or p.user_share == 0.5)
    more = replace(grid, seeds=(0, 1)).points()
    assert more[: len(points)] == points
    assert [p.batch_size for p in more[len(points) :]] == 2 * [8, 16, 32]
    assert {p.seed for p in more[len(points) :]} == {1}


def test_shipped_grids_have_the_sizes_that_they_promise() -> None:
    from encoder.clue.network import ClueNetwork

    for name, least, most in (("cpu", 3e4, 5e6), ("gpu", 1e5, 1.2e8)):
        grid = find_grid(name)
        sizes = [
            sum(
                p.numel()
                for k, p in ClueNetwork(point.config(grid).model, 10).named_parameters()
                if k != "item.tokens.weight"
            )
            for point in {p.size.name: p for p in grid.points()}.values()
        ]
        assert min(sizes) == pytest.approx(least, rel=0.2)
        assert max(sizes) == pytest.approx(most, rel=0.3)
    with pytest.raises(ValueError, match=f"known: {', '.join(sorted(GRIDS))}"):
        find_grid("large")


def test_a_grid_goes_on_where_it_stopped_and_does_nothing_twice(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(repo)
    names = [point.name for point in plan.to_do()]
    assert names == [p.name for p in TINY.points()]
    assert plan.to_dict()["runs_to_do"] == 3

    calls = 0

    def killed(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return train_clue(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("encoder.clue.training.train_clue", killed)
        with pytest.raises(KeyboardInterrupt):
            run_scaling(plan, progress=False)
    assert [p.name for p in plan.to_do()] == names[1:]
    first = plan.path(TINY.points()[0])
    before = first.stat().st_mtime_ns
    runs = run_scaling(plan, progress=False)
    assert first.stat().st_mtime_ns == before
    assert [run["name"] for run in runs] == names
    assert not plan.to_do()
    for run in runs:
        spent = run["history"][-1]["model_flops"]
        assert spent <= 1.2 * TINY.budget
        lowest = min(e["validation_loss"] for e in run["history"])
        assert run["best_loss"] == pytest.approx(lowest, abs=1e-3)  # what counts as improvement
        assert 0 < run["parameters_beside_tokens"] < run["parameters"]
    # Four tastes among eight users: better than a guess, whose loss is log(8).
    assert min(run["best_loss"] for run in runs) < np.log(8) - 0.3


def test_runs_are_judged_downstream_where_there_are_labels(
    tmp_path: Path, repo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = "items: {path: i.parquet, item: i, tags: g}\n"
    when = "evaluation: {cutoff: 1970-03-02T00:00:00Z, horizon_days: 7}\n"
    plan = _plan(_repository(tmp_path, items + when))
    (run,) = run_scaling(plan, only="*-b16-e6-*", progress=False)
    judged = run["downstream"]
    # A user has one taste, and events of it in most weeks: vectors tell which.
    assert judged["loss"] < judged["base_loss"] - 0.05
    assert judged["auc_micro"]["value"] > 0.8
    assert judged["auc_micro"]["low"] <= judged["auc_micro"]["value"] <= 1.0
    # The other data end before a label could lie: said, and no reason to fail.
    (run,) = run_scaling(_plan(repo, replace(TINY, budget=5e7)), only="*-b8-*", progress=False)
    assert run["downstream"] is None
    assert "runs are not judged downstream" in caplog.text


def test_a_head_learns_nothing_from_labels_of_other_users() -> None:
    sequences, tokenizer, topic = planted(300)
    network = ClueNetwork(
        ClueConfig(16, 32, 1, 1, head_width=16, max_item_tokens=8, max_events=6),
        tokenizer.vocabulary,
    )
    users = np.array(sequences.users, object)
    y = topic[:, None] == np.arange(6)
    moment = np.full(300, np.datetime64("2024-01-01T00:00:00", "us"))
    labels = Labels(users, moment, y, tuple("abcdef"), np.full(6, 1 / 6), moment[0], 7)
    # Topics have words of their own, which a network tells apart with any weights.
    own = Downstream(labels, 0).measure(network, sequences)
    assert own["loss"] < own["base_loss"] - 0.05
    assert own["base_loss"] == pytest.approx(-(np.log(1 / 6) + 5 * np.log(5 / 6)) / 6, abs=0.02)
    drawn = replace(labels, y=np.random.default_rng(1).permutation(y))
    others = Downstream(drawn, 0).measure(network, sequences)
    assert others["loss"] > others["base_loss"] - 0.02


def test_a_grid_leaves_a_record(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(TINY, budget=6e7)
    monkeypatch.setitem(GRIDS, "tiny", mine)
    run_scaling(_plan(repo, mine), progress=False)
    record = tmp_path / "record.json"
    asked = ["scaling", "fit", "--repo", str(repo), "--grid", "tiny", "--record", str(record)]
    done = CliRunner().invoke(main, [*asked, "--resamples", "5"])
    assert done.exit_code == 0, done.output
    kept = json.loads(record.read_text())
    assert (kept["grid"], kept["dataset"]) == ("tiny", "planted")
    assert [run["name"] for run in kept["runs"]] == [point.name for point in TINY.points()]
    assert kept["fit"]["runs"] == 3


def test_some_runs_of_a_grid_are_asked_for_by_name(repo: Path) -> None:
    plan = _plan(repo, replace(TINY, budget=1e8))  # a grid of its own
    only = "*-b16-*"
    assert [point.batch_size for point in plan.to_do(only)] == [16, 16]
    assert plan.to_dict(only)["runs"] == 2
    runs = run_scaling(plan, only="*-b8-*", progress=False)
    assert [run["batch_size"] for run in runs] == [8]
    assert len(plan.to_do(only)) == len(plan.to_do()) == 2
    with pytest.raises(ValueError, match="no run of the grid has such a name"):
        plan.to_do("w99*")


def test_other_data_or_another_budget_is_another_grid(repo: Path) -> None:
    plan = _plan(repo)
    assert _plan(repo, replace(TINY, budget=3e8)).folder != plan.folder
    assert _plan(repo, replace(TINY, batch_sizes=(8, 16, 32))).folder == plan.folder


def _runs(law: PowerLaw) -> list[dict[str, Any]]:
    """Return runs whose frontier follows a law, and whose MRR grows with batch times size."""
    runs = []
    for width in (32, 64, 128, 256):
        for batch_size in (32, 512):
            operations = np.geomspace(1e10, width * batch_size * 1e9, 12)
            helps = 1 + 0.01 * (np.log2(width) - 6.5) * (1 if batch_size == 512 else -1)
            runs.append(
                {
                    "name": f"w{width}-b{batch_size}",
                    "width": width, "layers": 1, "batch_size": batch_size,
                    "max_events": 8, "user_share": 1.0, "seed": 0,
                    "parameters_beside_tokens": width**2, "parameters": 2 * width**2,
                    "best_loss": float(law(operations[-1])), "best_mrr": 0.5 * helps,
                    "history": [
                        {"model_flops": int(x), "validation_loss": float(law(x))}
                        for x in operations
                    ],
                }
            )  # fmt: skip
    return runs


def test_laws_and_batches_of_a_planted_grid() -> None:
    fit = fit_scaling(_runs(PowerLaw(2.0, 0.2, 0.4, 1e12)), n_resamples=50)
    assert fit["better"] == "power_plus_constant"
    law = fit["laws"]["power_plus_constant"]
    assert law["exponent"]["value"] == pytest.approx(0.2, abs=0.01)
    assert law["constant"]["value"] == pytest.approx(0.4, abs=0.05)
    large = fit["large_batches"]
    assert large["mrr"]["by_size"]["w32l1"][0] < 1 < large["mrr"]["by_size"]["w256l1"][0]
    trend = large["mrr"]["trend"]
    # Three times from width to width the ratio grows by .02: .06 over log10(64) of parameters.
    assert 1.02 < trend["low"] <= trend["value"] <= trend["high"] < 1.05
    assert large["paper"] == pytest.approx(1.032, abs=0.01)
    # Sixteen times the batch goes sixteen times as far down the law, which grows flat.
    assert max(large["loss"]["by_size"]["w32l1"]) < 0 < large["loss"]["trend"]["low"]
    assert max(v["relative_mrr"] for s in fit["batches"].values() for v in s["values"]) == 1
    # No run was judged downstream; then: the lower one loss, the lower the other.
    assert fit["downstream"] is None
    judged = [
        r | {"downstream": {"loss": r["best_loss"] / 2, "auc_micro": {"value": 0.7}}}
        for r in _runs(PowerLaw(2.0, 0.2, 0.4, 1e12))
    ]
    told = fit_scaling(judged, n_resamples=50)
    assert told["downstream"]["runs"] == 8
    assert told["downstream"]["correlation"]["value"] == pytest.approx(1.0)
    assert "of 8 runs: rank correlation 1.000 [" in markdown(told)
    table = markdown(fit)
    assert "| power plus constant | 0.200 [" in table
    assert "| w256l1 | 65,536 | 1 | 0.4925 | 0.5075 |" in table
    assert "by events" not in table  # one length was tried
    assert "Downstream" not in table
    assert "Downstream micro AUC by users a batch: 32 | 512 |" in markdown(told)


def test_a_row_of_a_table_is_of_the_seeds_that_all_its_values_have() -> None:
    runs = _runs(PowerLaw(2.0, 0.2, 0.4, 1e12))
    again = [run | {"seed": 1, "best_mrr": 0.9} for run in runs if run["batch_size"] == 32]
    assert table_of([*runs, *again], "batch_size") == table_of(runs, "batch_size")
    both = table_of([*runs, *(run | {"seed": 1, "best_mrr": 0.9} for run in runs)], "batch_size")
    (small, large) = both["w256l1"]["values"]
    assert small["mrr"] == pytest.approx((0.4925 + 0.9) / 2)
    assert (small["seeds"], large["seeds"]) == (2, 2)


def test_a_size_without_the_largest_batch_is_not_compared() -> None:
    runs = _runs(PowerLaw(2.0, 0.2, 0.4, 1e12))
    some = [run | {"batch_size": min(run["batch_size"], 128)} for run in runs[:2]] + runs[2:]
    found = large_batches(some)
    assert list(found["mrr"]["by_size"]) == ["w64l1", "w128l1", "w256l1"]
    assert found["loss"]["trend"] is None  # three pairs
    assert large_batches(runs[::2])["mrr"]["by_size"] == {}  # one batch was tried


def test_the_papers_points_are_fitted_in_operations() -> None:
    fit = fit_scaling(_runs(PowerLaw(2.0, 0.2, 0.0, 1e12)), n_resamples=10)
    paper = PowerLaw(*(fit["paper"][k] for k in ("scale", "exponent", "constant", "unit")))
    days, loss = PAPER_LOSS[2]
    assert paper(days * PF_DAY) == pytest.approx(loss, rel=0.3)


def test_a_grid_of_too_few_points_has_no_law() -> None:
    (run, *_) = _runs(PowerLaw(2.0, 0.2, 0.0, 1e12))
    run = run | {"history": run["history"][:1]}
    fit = fit_scaling([run], n_resamples=10)
    assert fit["laws"] == {"power": None, "power_plus_constant": None}
    assert fit["better"] is None
    assert "the paper's points" in markdown(fit)


def test_the_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    runs = _runs(PowerLaw(2.0, 0.2, 0.4, 1e12))
    page = tmp_path / "scaling.html"
    write_page(runs, fit_scaling(runs, n_resamples=10), page)
    html = page.read_text()
    assert html.count("Plotly.newPlot(") == 4
    assert "<script src=" not in html
    assert html.count("the paper") >= 6


def test_the_command_plans_fits_and_tells_what_lacks(repo: Path) -> None:
    plan = CliRunner().invoke(
        main, ["scaling", "run", "--repo", str(repo), "--grid", "smoke", "--dry-run"]
    )
    assert json.loads(plan.stdout)["runs"] == len(GRIDS["smoke"].points())
    fit = CliRunner().invoke(main, ["scaling", "fit", "--repo", str(repo), "--grid", "smoke"])
    assert fit.exit_code == 1
    assert "No run of grid 'smoke' is finished here" in fit.output
    wrong = CliRunner().invoke(main, ["scaling", "run", "--repo", str(repo), "--grid", "x"])
    assert wrong.exit_code == 2
    assert "known: cpu, gpu, smoke" in wrong.output


def test_a_grid_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "palate.yaml").write_text("dataset: dataset.yaml\n")
    (tmp_path / "dataset.yaml").write_text(
        "name: none\nevents: {path: e.parquet, user: u, item: i, timestamp: t}\n"
        "evaluation: {cutoff: 1970-04-01T00:00:00Z}\n"
    )
    with pytest.raises(DataFault, match="palate data validate"):
        _plan(tmp_path)
