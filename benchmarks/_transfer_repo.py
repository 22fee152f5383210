"""A repository of one data set for the benchmark `transfer`: its features, and a space a training.

Every step may be killed and repeated: the commands go on where they stopped, and a training of the
same settings gives the same space.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from benchmarks._environment import ROOT
from benchmarks._transfer_plan import Network, TransferData, Variant, config
from materialize.config import CONFIG_FILE
from materialize.context import Context
from materialize.demo import feast_apply
from materialize.evaluate.models.registry import of_space
from materialize.template import init_repository

__all__ = ["Trained", "TransferRepo", "note"]

_TRAININGS = "trainings.json"


@dataclass(frozen=True)
class Trained:
    """A space of a variant.

    Attributes
    ----------
    repository : str
        Where the space is.
    variant : str
    seed, space : int
    encoder_version : str
    training_rows, epochs : int
    validation_loss : float
    seconds : float
        Wall time of the command that trained it, start of Python included.
    """

    repository: str
    variant: str
    seed: int
    space: int
    encoder_version: str
    training_rows: int
    epochs: int
    validation_loss: float
    seconds: float

    @property
    def model(self) -> str:
        """Name among measurements of several repositories."""
        return f"{self.repository} {of_space(self.space)}"


class TransferRepo:
    """A feature repository under a work folder.

    State: all of it lies in files. ``trainings.json`` beside the repository's own files keeps how
    long each space took to train, which a repeated command could not tell.
    """

    def __init__(self, work: Path, data: TransferData, network: Network, suffix: str = "") -> None:
        self.data, self.network = data, network
        self.repo = work / f"{data.name}{suffix}"
        self._dataset: str | None = None

    def prepare(self, tokenizer: str | None = None) -> None:
        """Make the repository unless it is there, build its raw features and apply its views.

        ``tokenizer`` is as of `TransferData.prepare`.
        """
        if not (self.repo / CONFIG_FILE).exists():
            init_repository(self.repo, self.data.shipped)
        self._dataset = self.data.prepare(self.repo, self.network, tokenizer)
        self._configure()
        note(f"{self.repo.name}: raw features")
        self._palate("data", "validate")
        self._palate("features", "build")
        feast_apply(self.repo)

    def train(self, variants: Sequence[Variant], seeds: Sequence[int]) -> list[Trained]:
        """Train each variant with each seed; return the spaces by variant, then seed."""
        found: dict[tuple[str, int], Trained] = {}
        for seed in seeds:
            for variant in (v for v in variants if v.elsewhere is None):
                needed = None if variant.needs is None else found[variant.needs, seed].space
                note(f"{self.data.name}: {variant.title}, encoder seed {seed}")
                self._configure(seed, variant, needed)
                found[variant.name, seed] = self._train(variant.name, seed)
        self._configure()
        return [found[v.name, seed] for v in variants if v.elsewhere is None for seed in seeds]

    def artifact(self, space: int) -> str:
        """Return the folder of a space's artifact."""
        return Context(self.repo).ledger.space(space).artifact_url

    def adopt(
        self, variant: str, encoders: Sequence[Trained], urls: Sequence[str]
    ) -> list[Trained]:
        """Make spaces of encoders that another repository trained; `Trained.seconds` stays."""
        spaces = []
        for one, url in zip(encoders, urls, strict=True):
            told = json.loads(self._palate("spaces", "adopt", url, "--other-users"))
            here = {"repository": self.repo.name, "variant": variant, "space": told["space"]}
            spaces.append(replace(one, **here))
        return spaces

    def _configure(
        self, seed: int = 0, variant: Variant | None = None, space: int | None = None
    ) -> None:
        assert self._dataset is not None, "prepare() comes first"
        settings = config(self._dataset, self.data, self.network, seed, variant, space)
        (self.repo / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")

    def _train(self, variant: str, seed: int) -> Trained:
        started = time.perf_counter()
        told = json.loads(self._palate("train"))
        seconds = round(time.perf_counter() - started, 1)
        path = self.repo / _TRAININGS
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if told.pop("new") or told["encoder_version"] not in kept:
            kept[told["encoder_version"]] = seconds
            path.write_text(json.dumps(kept, indent=1), "utf-8")
        seconds = kept[told["encoder_version"]]
        return Trained(self.repo.name, variant, seed, seconds=seconds, **told)

    def _palate(self, *words: str) -> str:
        """Run a command of this checkout on the repository; return what it wrote to stdout."""
        program = [sys.executable, "-c", "from materialize.cli import main; main()"]
        done = subprocess.run(
            [*program, *words, "--repo", str(self.repo)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"`palate {' '.join(words)}` exited with {done.returncode}.")
        return done.stdout


def note(text: str) -> None:
    """Say on stderr what is being done, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
