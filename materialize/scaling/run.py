"""Trains the points of a grid, one JSON file each; a killed grid goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from encoder.clue.config import ClueTrainingConfig
from encoder.clue.sequences import UserSequences
from encoder.clue.tokenizer import ItemTokenizer
from materialize.config import RepoSettings
from materialize.scaling.grid import Grid, Point
from transforms.clean import CleanTables
from transforms.engine import bounded_connection
from transforms.service_sequences import ServiceTexts

if TYPE_CHECKING:
    from encoder.clue.training import ClueResult
    from materialize.scaling.downstream import Downstream

__all__ = ["ScalingPlan", "plan_scaling", "read_runs", "run_scaling"]

_log = logging.getLogger(__name__)

_PROBED_BATCHES = 4
_SEQUENCES, _TOKENIZER = "sequences", "tokenizer.json"


@dataclass(frozen=True)
class ScalingPlan:
    """A grid on the data of a repository.

    Attributes
    ----------
    grid : Grid
    folder : Path
        Of this grid on these data: ``runs/NAME.json``, and what trainings leave off at.
    clean : CleanTables
    settings : RepoSettings
    """

    grid: Grid
    folder: Path
    clean: CleanTables
    settings: RepoSettings

    def path(self, point: Point) -> Path:
        """Return where a point's run is kept."""
        return self.folder / "runs" / f"{point.name}.json"

    def to_do(self, only: str = "*") -> list[Point]:
        """Return the points without a run, of those whose names match a pattern.

        Raises
        ------
        ValueError
            None matches.
        """
        points = _named(self.grid.points(), only)
        return [point for point in points if not self.path(point).exists()]

    def to_dict(self, only: str = "*") -> dict[str, Any]:
        """Return JSON types, for `--dry-run`."""
        points, left = _named(self.grid.points(), only), self.to_do(only)
        return {
            "grid": self.grid.name,
            "points": [point.name for point in points],
            "runs": len(points),
            "runs_to_do": len(left),
            "operations_to_do_at_most": self.grid.budget * len(left),
            "folder": str(self.folder),
        }


def _named(points: Sequence[Point], only: str) -> list[Point]:
    found = [point for point in points if fnmatchcase(point.name, only)]
    if not found:
        raise ValueError(f"{only!r} given, no run of the grid has such a name: see --dry-run.")
    return found


def plan_scaling(settings: RepoSettings, grid: Grid) -> ScalingPlan:
    """Return what a grid is on the repository's data; writes nothing.

    Raises
    ------
    DataFault
        No validated data.
    """
    clean = CleanTables(settings.data_dir)
    facts = asdict(grid) | {"sizes": [], "batch_sizes": [], "max_events": [], "user_shares": []}
    # More points may be added to a grid: its runs stay what they are.
    facts |= {"seeds": [], "longest": max(grid.max_events)}
    # What the grid does not name is the training's default, and decides the runs as well.
    facts |= {"defaults": ClueTrainingConfig().told()}
    cutoff = settings.dataset.evaluation.cutoff.isoformat()
    content = json.dumps([version("palate"), clean.fingerprint(), cutoff, facts], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    return ScalingPlan(grid, settings.data_dir / "scaling" / grid.name / key, clean, settings)


def run_scaling(
    plan: ScalingPlan, *, only: str = "*", progress: bool = True
) -> list[dict[str, Any]]:
    """Train what is left of a grid, and return all its runs, see `read_runs`.

    Parameters
    ----------
    plan : ScalingPlan
    only : str
        Points to train, by a pattern of their names: several machines can share a grid out.
    progress : bool
        Show a bar over the runs on stderr.

    Raises
    ------
    DataFault
        Too few users have events in two services for the grid's largest batch.
    TrainingFault
        A loss is not finite.

    Notes
    -----
    Safe to kill and to repeat: a training goes on from its checkpoint, a finished run is not done
    again. Makes no space and touches nothing that is served.
    """
    todo = plan.to_do(only)
    if todo:
        from materialize.scaling.downstream import downstream_of

        sequences, tokenizer = _data(plan)
        task = downstream_of(plan.settings)
        chosen = len(_named(plan.grid.points(), only))
        with tqdm(
            total=chosen,
            initial=chosen - len(todo),
            desc=f"grid {plan.grid.name}",
            unit="run",
            disable=not progress,
        ) as bar:
            for point in todo:
                bar.set_postfix_str(point.name)
                _do(plan, point, sequences, tokenizer, task)
                bar.update()
    return read_runs(plan)


def read_runs(plan: ScalingPlan) -> list[dict[str, Any]]:
    """Return the finished runs of a grid, in its order.

    Returns
    -------
    list of dict
        ``name``; ``width``, ``layers``, ``batch_size``, ``max_events``, ``user_share``, ``seed``;
        ``parameters`` and, without the token table, ``parameters_beside_tokens``; ``history``, one
        an epoch, see `encoder.clue.training.ClueEpoch`; ``best_loss``, ``best_mrr``;
        ``downstream``, see `materialize.scaling.downstream.Downstream.measure`, None where there
        are no labels; ``training_users``; ``seconds``.
    """
    paths = [plan.path(point) for point in plan.grid.points()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def _data(plan: ScalingPlan) -> tuple[UserSequences, ItemTokenizer]:
    """Return the sequences up to the cut-off and their tokenizer, made once."""
    folder, grid = plan.folder / _SEQUENCES, plan.grid
    if not (folder / _TOKENIZER).exists():
        plan.folder.mkdir(parents=True, exist_ok=True)
        memory = plan.settings.file.memory_limit_mb
        with bounded_connection(memory, plan.folder) as connection:
            texts = ServiceTexts(connection, plan.clean, plan.settings.dataset.evaluation.cutoff)
            tokenizer = texts.fit_tokenizer(
                vocabulary=grid.vocabulary, max_tokens=grid.max_item_tokens
            )
            texts.sequences(tokenizer, 2 * max(grid.max_events)).save(folder)
        temporary = folder / f"{_TOKENIZER}.tmp"
        temporary.write_text(tokenizer.to_json(), encoding="utf-8")
        os.replace(temporary, folder / _TOKENIZER)
    tokenizer = ItemTokenizer.from_json((folder / _TOKENIZER).read_text(encoding="utf-8"))
    return UserSequences.open(folder), tokenizer


def _do(
    plan: ScalingPlan,
    point: Point,
    sequences: UserSequences,
    tokenizer: ItemTokenizer,
    task: Downstream | None,
) -> None:
    from encoder.clue.training import train_clue

    started, grid = time.perf_counter(), plan.grid
    steps = _steps(point, grid, sequences, tokenizer.vocabulary)
    checkpoints = plan.folder / "training" / point.name
    result = train_clue(
        sequences,
        tokenizer.vocabulary,
        point.config(grid, steps),
        checkpoints,
        progress=False,
    )
    seconds = time.perf_counter() - started
    judged = None if task is None else task.measure(result.network, sequences)
    told = _told(point, result) | {"downstream": judged, "seconds": seconds}
    path = plan.path(point)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(told, indent=1), encoding="utf-8")
    os.replace(temporary, path)
    shutil.rmtree(checkpoints)
    _log.info(
        "%s: %d steps, loss %.4f, %s",
        *(point.name, steps, told["best_loss"], timedelta(seconds=round(told["seconds"]))),
    )


def _steps(point: Point, grid: Grid, sequences: UserSequences, vocabulary: int) -> int:
    """Return how many steps the budget allows, counted on the first batches."""
    from encoder.clue.flops import FlopMeter
    from encoder.clue.network import ClueNetwork
    from encoder.clue.training import training_pairs

    config = point.config(grid)
    pairs = training_pairs(sequences, config)
    meter = FlopMeter(ClueNetwork(config.model, vocabulary))
    batches = islice(pairs.batches(config.batch_size, (config.seed, 0)), _PROBED_BATCHES)
    costs = [meter.of(batch, config.chunks).model for batch in batches]
    return max(1, int(grid.budget * len(costs) / sum(costs))) if costs else 1


def _told(point: Point, result: ClueResult) -> dict[str, Any]:
    everything = sum(p.numel() for p in result.network.parameters())
    history = [asdict(epoch) for epoch in result.history]
    best = result.history[result.best_epoch - 1]
    return {
        "name": point.name,
        "width": point.size.width,
        "layers": point.size.layers,
        "batch_size": point.batch_size,
        "max_events": point.max_events,
        "user_share": point.user_share,
        "seed": point.seed,
        "parameters": everything,
        "parameters_beside_tokens": everything - result.network.item.tokens.weight.numel(),
        "training_users": result.n_training_users,
        "best_loss": best.validation_loss,
        "best_mrr": best.validation_mrr,
        "history": history,
    }
