"""What does a retraining cost consumers who stay: unbridged, bridged, or trained to be compatible?

MovieLens 1M from ``PALATE_DATA``. Space 1 knows the events before FIRST; each of three nights the
encoder is retrained with one more day of data. A consumer stays with a linear head that was fitted
on space 1. How the nights are retrained:

- ``same seed``: item vectors kept (``item_vectors_until``), so only the autoencoder is new.
- ``other seed``: the same, but its weights start elsewhere.
- ``compatible``: other seed, and the term of ``compatibility:`` towards space 1.
- ``all anew, same seed``: the default; item vectors are fitted again on the night's data.
- ``all anew, other seed``.

An old loss is the old head's AUC on space 1 minus its AUC on the vectors that it is served; an
intended loss is a new head's AUC on the free retraining with that seed minus a new head's on this
one, 0 by definition where the retraining is free. Both are macro AUC over the same test users, with
95% bootstrap intervals over them. The maps are fitted on the users that heads train on, and judged
on the others.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from benchmarks.harness import Record, compare, run_isolated, write_results
from encoder.alignment import OrthogonalMap, cosines, neighbour_overlap, orthogonal_map
from encoder.metrics import AucReplicates, bootstrap_auc, bootstrap_mean
from encoder.resampling import Interval

SEED = 0
NIGHTS = 3
FIRST = datetime(2000, 11, 17, tzinfo=timezone.utc)
"""Space 1 knows what happened before it; night k what happened before k days later."""
LABELS_FROM = FIRST + timedelta(days=NIGHTS)
"""No encoder of the study saw a label."""
_DATA_END = datetime(2004, 1, 1, tzinfo=timezone.utc)
_NEIGHBOURS = 50
_RESAMPLES = 500
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """What one encoder makes of the same moments.

    Attributes
    ----------
    labelled : float32 (n_labels, dim)
        Known at each label's time.
    newest : float32 (n_users, dim)
        Of each user's newest moment.
    """

    labelled: _Floats
    newest: _Floats

    @classmethod
    def read(cls, path: Path) -> Vectors:
        """Read what `train_night` wrote."""
        with np.load(path) as file:
            return cls(file["labelled"], file["newest"])

    def mapped(self, by: Any) -> Vectors:
        """Return both through a map of vectors."""
        return Vectors(by(self.labelled), by(self.newest))


def prepare(repository: str) -> None:
    """Make the feature repository with validated data."""
    from materialize.context import Context
    from materialize.template import init_repository
    from materialize.validate import validate

    repo = Path(repository)
    init_repository(repo, "ml1m")
    settings = Context(repo).settings
    validate(settings.dataset, settings.data_dir, progress=False)


def train_night(
    repository: str, night: int, seed: int, compatible: bool, anew: bool, answer: str
) -> dict[str, Any]:
    """Train as one night does, and write the encoder's vectors of all moments to ``answer``.

    Returns
    -------
    dict
        ``space``, ``training_rows``, ``epochs``, ``modality_version``.
    """
    from materialize.context import Context
    from materialize.features import build_features
    from materialize.train import train_space
    from transforms.clean import CleanTables

    repo = Path(repository)
    cutoff = FIRST + timedelta(days=night)
    _configure(repo, cutoff, seed, compatible=compatible, vectors_until=cutoff if anew else FIRST)
    settings = Context(repo).settings
    build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    if not (settings.data_dir / "registry.db").exists():
        program = [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "apply"]
        subprocess.run(program, cwd=repo, check=True, capture_output=True)
    context = Context(repo)
    trained = train_space(context.store, settings, context.ledger, progress=False)
    _write_vectors(context, trained.space.encoder_version, Path(answer))
    return {
        "space": trained.space.number,
        "training_rows": trained.rows,
        "epochs": len(trained.history),
        "modality_version": trained.space.facts["modality_version"],
    }


def labels(repository: str, answer: str) -> dict[str, Any]:
    """Write users, label times and labels from ``LABELS_FROM`` on to ``answer``."""
    from materialize.context import Context
    from materialize.evaluate.job import repository_labels

    repo = Path(repository)
    _configure(repo, LABELS_FROM, SEED, compatible=False, vectors_until=FIRST)
    found = repository_labels(Context(repo).settings)
    np.savez(answer, user=found.user_id, moment=found.event_timestamp, y=found.y)
    return {"rows": len(found.user_id), "targets": len(found.targets)}


def _configure(
    repo: Path, cutoff: datetime, seed: int, *, compatible: bool, vectors_until: datetime
) -> None:
    """Write the night's settings; the seed of item vectors, labels and row draws stays."""
    path = repo / "datasets" / "ml1m.yaml"
    dataset = yaml.safe_load(path.read_text(encoding="utf-8"))
    dataset["evaluation"]["cutoff"] = cutoff.isoformat()
    dataset["item_vectors_until"] = vectors_until.isoformat()
    path.write_text(yaml.safe_dump(dataset), encoding="utf-8")
    path = repo / "palate.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config |= {"autoencoder": {"seed": seed}, "training": {"seed": seed, "device": "cpu"}}
    config["compatibility"] = {"space": 1} if compatible else None
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def _write_vectors(context: Any, encoder_version: str, answer: Path) -> None:
    """Encode each label's moment and each user's newest one, in the order of user and time."""
    from encoder.columns import raw_batch
    from materialize.batch import open_source
    from transforms.names import USER_KEY
    from transforms.runtime import encode, load_encoder

    store = context.settings.artifacts_url
    schema = load_encoder(store, encoder_version).preprocessor.schema
    source = open_source(context.store, context.settings, schema, end=_DATA_END, history=True)
    users, moments, vectors = [], [], []
    for batch in source.batches(ordered=True):
        raw = raw_batch(batch, schema, USER_KEY)
        users.append(batch.column(USER_KEY).to_numpy())
        moments.append(batch.column("event_timestamp").to_numpy().astype("datetime64[us]"))
        vectors.append(encode(raw, encoder_version, store).embedding)
    user, moment, vector = (np.concatenate(parts) for parts in (users, moments, vectors))
    with np.load(answer.with_name("labels.npz")) as wanted:
        rows = _as_of(user, moment, wanted["user"], wanted["moment"])
    newest = np.append(user[1:] != user[:-1], True)
    np.savez(answer, labelled=vector[rows], newest=vector[newest], user=user[newest])


def _as_of(
    user: npt.NDArray[Any],
    moment: npt.NDArray[np.datetime64],
    wanted_user: npt.NDArray[Any],
    wanted_moment: npt.NDArray[np.datetime64],
) -> npt.NDArray[np.intp]:
    """Return the row of each wanted user's last moment up to the wanted one."""
    first = np.searchsorted(user, wanted_user)
    last = np.searchsorted(user, wanted_user, side="right")
    rows = np.array(
        [
            a + np.searchsorted(moment[a:b], when, side="right") - 1
            for a, b, when in zip(first, last, wanted_moment, strict=True)
        ]
    )
    assert (rows >= first).all(), "a label lies before its user's first raw row"
    return rows


class Study:
    """The old consumer and the users that everything is judged on."""

    def __init__(self, folder: Path, old: Vectors) -> None:
        from encoder.heads import LinearProbe
        from materialize.evaluate.split import training_users

        with np.load(folder / "labels.npz") as file:
            self.user, self.y = file["user"], file["y"]
        with np.load(folder / "space1.npz") as file:
            self.fit = training_users(file["user"])
        self.training = training_users(self.user)
        self.probe = LinearProbe
        self.old = old
        self.old_head = self.head(old)
        self.base = self.auc(self.old_head, old)

    def head(self, vectors: Vectors) -> Any:
        """Fit a head on training users' vectors."""
        rows = self.training
        return self.probe().fit(vectors.labelled[rows], self.y[rows], self.user[rows], seed=SEED)

    def auc(self, head: Any, vectors: Vectors) -> AucReplicates:
        """Let a head read test users' vectors."""
        rows = ~self.training
        return bootstrap_auc(
            self.y[rows],
            head.scores(vectors.labelled[rows]),
            self.user[rows],
            n_resamples=_RESAMPLES,
            seed=SEED,
        )

    def geometry(self, vectors: Vectors) -> tuple[Interval, Interval]:
        """Return cosine and neighbour overlap with space 1 of users that no map saw."""
        new, old = vectors.newest[~self.fit], self.old.newest[~self.fit]
        found = cosines(new, old), neighbour_overlap(new, old, _NEIGHBOURS)
        return (
            bootstrap_mean(found[0], n_resamples=_RESAMPLES, seed=SEED),
            bootstrap_mean(found[1], n_resamples=_RESAMPLES, seed=SEED),
        )

    def orthogonal(self, vectors: Vectors) -> OrthogonalMap:
        """Return the map that a bridge would be."""
        return orthogonal_map(vectors.newest[self.fit], self.old.newest[self.fit])

    def linear(self, vectors: Vectors) -> Any:
        """Return a least-squares map with a shift: what an unconstrained bridge could reach."""
        source = vectors.newest[self.fit].astype(np.float64)
        padded = np.pad(source, ((0, 0), (0, 1)), constant_values=1.0)
        weight, *_ = np.linalg.lstsq(padded, self.old.newest[self.fit], rcond=None)
        return lambda x: (x @ weight[:-1] + weight[-1]).astype(np.float32)


@dataclass
class Method:
    """One row of the table: a figure of each night."""

    name: str
    cosine: list[Interval]
    overlap: list[Interval]
    old_loss: list[Interval]
    intended_loss: list[Interval]

    @classmethod
    def named(cls, name: str) -> Method:
        """Return one without nights."""
        return cls(name, [], [], [], [])

    def add(self, study: Study, served: Vectors, intended: Interval | None) -> None:
        """Add a night's figures."""
        cosine, overlap = study.geometry(served)
        self.cosine.append(cosine)
        self.overlap.append(overlap)
        loss = study.base.minus(study.auc(study.old_head, served))
        self.old_loss.append(loss.macro_interval)
        if intended is not None:
            self.intended_loss.append(intended)

    def records(self) -> list[Record]:
        """Return the records; the target is the one that a bridge is served under by default."""
        records = []
        for what, unit, figures, target in (
            ("cosine with space 1", "cosine", self.cosine, None),
            (f"neighbour overlap@{_NEIGHBOURS} with space 1", "share", self.overlap, None),
            ("old consumer's loss", "macro AUC", self.old_loss, self._target()),
            ("intended loss", "macro AUC", self.intended_loss, None),
        ):
            if not figures:
                continue
            nights = "; ".join(f"{i.value:.4f} [{i.low:.4f}, {i.high:.4f}]" for i in figures)
            claim = f"{self.name}: {what}; nights with 95% intervals over users: {nights}"
            values = [interval.value for interval in figures]
            records.append(compare(claim, values, unit=unit, target=target, seed=SEED))
        return records

    def _target(self) -> str | None:
        return None if "no bridge" in self.name else "ours <= 0.01"


def study(folder: Path) -> tuple[list[Method], Record]:
    """Train all nights in ``folder``; return the table's rows, and what the old head knew."""
    repository = folder / "repo"
    run_isolated("benchmarks.bridges:prepare", str(repository))
    run_isolated("benchmarks.bridges:labels", str(repository), str(folder / "labels.npz"))

    def night(name: str, k: int, seed: int, *, compatible: bool, anew: bool) -> Vectors:
        path = folder / f"{name}.npz"
        facts = run_isolated(
            "benchmarks.bridges:train_night",
            *(str(repository), k, seed, compatible, anew, str(path)),
        )
        print(f"{name}: {facts.result}, {facts.seconds:.0f} s", file=sys.stderr)
        return Vectors.read(path)

    old = night("space1", 0, SEED, compatible=False, anew=False)
    found = Study(folder, old)
    print(f"old head on space 1: {found.base.macro_interval}", file=sys.stderr)
    methods: dict[str, Method] = {}

    def row(name: str, served: Vectors, intended: Interval | None = None) -> None:
        methods.setdefault(name, Method.named(name)).add(found, served, intended)

    def rows(how: str, new: Vectors) -> None:
        row(f"{how}, no bridge", new)
        row(f"{how}, orthogonal map", new.mapped(found.orthogonal(new).apply))
        row(f"{how}, linear map (not offered)", new.mapped(found.linear(new)))

    for k in range(1, NIGHTS + 1):
        rows("same seed", night(f"same{k}", k, SEED, compatible=False, anew=False))
        free = night(f"other{k}", k, SEED + k, compatible=False, anew=False)
        rows("other seed", free)
        held = night(f"held{k}", k, SEED + k, compatible=True, anew=False)
        lost = found.auc(found.head(free), free).minus(found.auc(found.head(held), held))
        row("compatible, no bridge", held, lost.macro_interval)
        mapped = held.mapped(found.orthogonal(held).apply)
        row("compatible, orthogonal map", mapped, lost.macro_interval)
    # Last: they replace the raw features, and with them the item vectors of space 1.
    for k in range(1, NIGHTS + 1):
        for how, seed in (("same", SEED), ("other", SEED + k)):
            new = night(f"anew-{how}{k}", k, seed, compatible=False, anew=True)
            rows(f"all anew, {how} seed", new)
    known = compare(
        "macro AUC of the old head on space 1, test users",
        [found.base.macro],
        unit="macro AUC",
        seed=SEED,
    )
    return list(methods.values()), known


def table(methods: list[Method]) -> str:
    """Return the Markdown table of docs/spaces.md: mean over nights and their range."""

    def cell(figures: list[Interval], digits: int) -> str:
        values = [interval.value for interval in figures]
        low, high = min(values), max(values)
        return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    def widest(figures: list[Interval]) -> str:
        return f"{min(i.low for i in figures):.4f} to {max(i.high for i in figures):.4f}"

    lines = [
        "| retraining, bridge | cosine | overlap@50 | old consumer's loss | its 95% intervals | "
        "intended loss | its 95% intervals |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in methods:
        intended = (
            [cell(m.intended_loss, 4), widest(m.intended_loss)]
            if m.intended_loss
            else 2 * ["by definition 0"]
        )
        cells = [m.name, cell(m.cosine, 3), cell(m.overlap, 3), cell(m.old_loss, 4)]
        lines.append(f"| {' | '.join([*cells, widest(m.old_loss), *intended])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="New folder to keep what is made.")
    args = parser.parse_args()
    data = os.environ.get("PALATE_DATA", "")
    if not (Path(data) / "ml1m").is_dir():
        sys.exit("PALATE_DATA names no folder with ml1m; the study needs MovieLens 1M.")
    os.environ["PALATE_DATA"] = str(Path(data).resolve())
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        methods, known = study(folder)
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    print(table(methods))
    records = [record for method in methods for record in method.records()]
    write_results("bridges", [known, *records])


if __name__ == "__main__":
    main()
