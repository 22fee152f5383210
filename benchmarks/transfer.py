"""Does contrast between services make a better general vector than other ways to learn one?

On data sets of several services (``PALATE_DATA``), encoders of each kind in ``VARIANTS`` are
trained with several seeds and alike small networks. A linear model on the frozen vectors says which
kinds of item a user consumes next, beside mean item vectors, CoLES, a linear model on the raw
inputs, popularity, and a network trained for this task alone. Encoders of one data set are judged
on the users of the other, too, of whom they saw none. Figures are means over the seeds of encoders
and heads, with 95% intervals over the test users; differences to the first variant are paired.

Repositories stay in the work folder. Killed and called again, the benchmark goes on, and data sets
that are not named keep their place in the result. One thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._environment import commit, hardware, versions
from benchmarks._transfer_judge import Judged, judge, together
from benchmarks._transfer_plan import DATASETS, VARIANTS, Network, TransferData, Variant, chosen
from benchmarks._transfer_repo import Trained, TransferRepo, note
from benchmarks._transfer_results import markdown, summarise
from benchmarks.harness import RESULTS
from materialize.evaluate.task import MAX_ROWS, RESAMPLES


@dataclass(frozen=True)
class Place:
    """A data set's repository and its spaces."""

    repo: TransferRepo
    trained: list[Trained]


def train(
    work: Path,
    data: TransferData,
    variants: Sequence[Variant],
    network: Network,
    encoder_seeds: int,
) -> Place:
    """Train all variants on one data set."""
    repo = TransferRepo(work, data, network)
    repo.prepare()
    return Place(repo, repo.train(variants, range(encoder_seeds)))


def measure(
    work: Path,
    places: Mapping[str, Place],
    name: str,
    variants: Sequence[Variant],
    *,
    head_seeds: int,
    max_rows: int,
    n_resamples: int,
) -> dict[str, Any]:
    """Judge on one data set; see ``_transfer_results.summarise``."""
    own = places[name]
    data, trained = own.repo.data, own.trained

    def judged(repo: Path, spaces: Sequence[Trained], *, baselines: bool) -> Judged:
        note(f"{repo.name}: probe of {len(spaces)} spaces")
        return judge(
            repo,
            spaces,
            head_seeds=head_seeds,
            max_rows=max_rows,
            n_resamples=n_resamples,
            baselines=baselines,
        )

    found = judged(own.repo.repo, trained, baselines=True)
    for variant in variants:
        if variant.elsewhere is not None and data.other in places:
            adopted = adopt(work, places[data.other], own.repo, variant)
            there = judged(work / adopted[0].repository, adopted, baselines=False)
            found, trained = together(found, there), [*trained, *adopted]
    present = {one.variant for one in trained}
    return summarise(name, [v for v in variants if v.name in present], trained, found, data.other)


def adopt(work: Path, origin: Place, here: TransferRepo, variant: Variant) -> list[Trained]:
    """Make spaces of another data set's encoders, in a repository with texts of its tokenizer."""
    encoders = [one for one in origin.trained if one.variant == variant.elsewhere]
    urls = [origin.repo.artifact(one.space) for one in encoders]
    repo = TransferRepo(work, here.data, here.network, suffix=f"-of-{here.data.other}")
    repo.prepare(tokenizer=urls[0])
    return repo.adopt(variant.name, encoders, urls)


def write(path: Path, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """Put one data set's result into the file, in one step; results of other settings go."""
    content: dict[str, Any] = {
        "settings": settings,
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "datasets": [],
    }
    earlier = json.loads(path.read_text("utf-8")) if path.exists() else content
    same = earlier["settings"] == settings
    kept = [one for one in earlier["datasets"] if same and one["name"] != found["name"]]
    order = [data.name for data in DATASETS]
    content["datasets"] = sorted([*kept, found], key=lambda one: order.index(one["name"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
    temporary.replace(path)


def main() -> None:
    """Measure, print the tables and write the result."""
    network, known = Network(), [data.name for data in DATASETS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the repositories; made if need be")
    parser.add_argument("--dataset", action="append", choices=known, help="default: all")
    parser.add_argument(
        "--variant", action="append", choices=[v.name for v in VARIANTS], help="default: all"
    )
    parser.add_argument("--encoder-seeds", type=int, default=3)
    parser.add_argument("--head-seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=network.width)
    parser.add_argument("--layers", type=int, default=network.layers)
    parser.add_argument("--max-epochs", type=int, default=network.max_epochs)
    parser.add_argument("--patience", type=int, default=network.patience)
    parser.add_argument(
        "--autoencoder-rows", type=int, default=network.max_rows, help="all epochs together"
    )
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, help="of the cohort")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--output", type=Path, default=RESULTS / "transfer.json")
    args = parser.parse_args()
    if "PALATE_DATA" not in os.environ:
        parser.error(f"PALATE_DATA is not set: the folder that holds {', '.join(known)}")
    try:
        variants = chosen(args.variant, VARIANTS)
    except ValueError as exc:
        parser.error(str(exc))
    network = Network(
        width=args.width,
        layers=args.layers,
        max_epochs=args.max_epochs,
        patience=args.patience,
        max_rows=args.autoencoder_rows,
    )
    how = {
        "head_seeds": args.head_seeds,
        "max_rows": args.max_rows,
        "n_resamples": args.resamples,
    }
    settings = {
        "variants": [v.name for v in variants],
        "network": asdict(network),
        "encoder_seeds": args.encoder_seeds,
        **how,
    }
    work = args.work.resolve()
    places = {
        data.name: train(work, data, variants, network, args.encoder_seeds)
        for data in DATASETS
        if args.dataset is None or data.name in args.dataset
    }
    for name in places:
        found = measure(work, places, name, variants, **how)
        write(args.output, settings, found)
        print(markdown(found) + "\n", flush=True)
    note(f"written to {args.output}")


if __name__ == "__main__":
    main()
