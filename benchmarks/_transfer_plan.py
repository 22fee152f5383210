"""What the benchmark `transfer` trains and on what: data sets and kinds of encoder, as data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks._hetrec import DATASET_FILE, write_dataset

__all__ = [
    "DATASETS",
    "METRIC",
    "VARIANTS",
    "Network",
    "TransferData",
    "Variant",
    "chosen",
    "config",
]

METRIC = "auc_micro"
"""Of the probe, on all test rows."""


@dataclass(frozen=True)
class Network:
    """What all encoders share, so that only what they learn from differs."""

    width: int = 64
    """Of both transformers of an encoder of texts."""
    layers: int = 1
    """Of each of them."""
    batch_size: int = 64
    """Users a step: the held-out loss of small networks is lower than with more
    (docs/guides/scaling.md)."""
    max_item_tokens: int = 16
    max_events: int = 16
    """Of texts: half the cost of the data sets' own limits, and a lower held-out loss."""
    max_epochs: int = 30
    patience: int = 6
    """Epochs without improvement before training stops."""
    max_rows: int = 300_000
    """Rows, all epochs together, that an autoencoder learns from at most, in whole epochs."""


@dataclass(frozen=True)
class Variant:
    """One way to learn an embedding.

    Attributes
    ----------
    name, title : str
    encoder : str
        Kind: ``encoder`` of palate.yaml.
    positives : str or None
        ``clue_training.positives``, where the kind reads texts alone.
    needs : str or None
        Variant whose space of the same seed this one is built on.
    sections : mapping
        Fields of palate.yaml by section, which go before those that all variants share; the value
        ``{space}`` stands for that space's number.
    beside : tuple of str
        Variants that this one is compared with, too, beside the first one.
    elsewhere : str or None
        Variant of another data set whose encoders are judged here, without any training.
    """

    name: str
    title: str
    encoder: str
    positives: str | None = None
    needs: str | None = None
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    elsewhere: str | None = None


VARIANTS = (
    Variant("services", "contrast between services", "clue", positives="services"),
    Variant("crops", "contrast within a service", "clue", positives="crops"),
    Variant("both", "both contrasts by turns", "clue", positives="both", beside=("crops",)),
    *(
        Variant(
            f"hard_{plain}",
            f"{title}, hard negatives",
            "clue",
            positives=plain,
            sections={"clue_training": {"hardness": 3.0}},
            beside=beside,
        )
        for plain, title, beside in (
            ("services", "contrast between services", ("crops", "hard_crops")),
            ("crops", "contrast within a service", ("crops",)),
            ("both", "both contrasts by turns", ("both", "hard_crops")),
        )
    ),
    # Tells what contrast adds: a random network already knows which texts are alike.
    Variant(
        "untrained",
        "that network with (almost) its initial weights",
        "clue",
        positives="services",
        sections={"clue_training": {"max_steps": 1}},
    ),
    Variant("autoencoder", "autoencoder", "autoencoder"),
    Variant(
        "hybrid",
        "autoencoder of blocks and that contrast's vector",
        "hybrid",
        needs="services",
        sections={"hybrid": {"space": "{space}"}},
        beside=("autoencoder",),
    ),
    Variant(
        "elsewhere",
        "contrast between services of {other}, never trained on these users",
        "clue",
        needs="services",
        elsewhere="services",
    ),
)
"""The first one is what the others are compared with; one that others need stands before them."""


@dataclass(frozen=True)
class TransferData:
    """One data set of several services.

    Attributes
    ----------
    name : str
    clue_training : mapping
        What suits the number of its users, the same for all variants.
    generated : bool
        Written by a script into the repository; else shipped as ``datasets/<name>.yaml``.
    other : str
        Data set whose encoders are judged here, too; the two share no user and no item.
    """

    name: str
    other: str
    clue_training: Mapping[str, Any] = field(default_factory=dict)
    generated: bool = False

    @property
    def shipped(self) -> str:
        """Name for ``palate init``."""
        return "my_data" if self.generated else self.name

    def prepare(self, repo: Path, network: Network, tokenizer: str | None = None) -> str:
        """Write what is to be generated and is not there; return ``dataset`` of palate.yaml.

        ``tokenizer`` is the folder of the artifact whose tokenizer makes the tokens.
        """
        described = Path("datasets", f"{self.name}.yaml")
        if self.generated:
            folder = repo / "datasets" / self.name
            # The YAML is written last. Newer files would be other data to all later steps.
            if not (folder / DATASET_FILE).exists():
                write_dataset(Path(os.environ["PALATE_DATA"]) / self.name, folder)
            described = (folder / DATASET_FILE).relative_to(repo)
        content = yaml.safe_load((repo / described).read_text("utf-8"))
        content["texts"] |= {
            "max_item_tokens": network.max_item_tokens,
            "max_events": network.max_events,
        }
        if tokenizer is not None:
            content["texts"]["tokenizer"] = tokenizer
        (repo / described).write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
        return described.as_posix()


DATASETS = (
    TransferData("amazon_crossdomain", "hetrec_lastfm2k"),
    # 1,367 users have both services before the cut-off: held-out ones of one service fill no batch
    # of 128, and an epoch has some 20 steps, too few for the default's 100 of warm-up.
    TransferData(
        "hetrec_lastfm2k",
        "amazon_crossdomain",
        {"validation_users": 64, "warmup_steps": 20},
        generated=True,
    ),
)


def chosen(names: Sequence[str] | None, known: Sequence[Variant]) -> list[Variant]:
    """Return the variants of these names in the order of the list.

    Raises
    ------
    ValueError
        An unknown name, or a variant without the one that it needs.
    """
    wanted = [v for v in known if names is None or v.name in names]
    there = {v.name for v in wanted}
    unknown = sorted(set(names or ()) - there)
    if unknown:
        raise ValueError(
            f"Unknown variant {', '.join(map(repr, unknown))}. "
            f"Known: {', '.join(v.name for v in known)}."
        )
    for variant in wanted:
        if variant.needs is not None and variant.needs not in there:
            raise ValueError(
                f"Variant {variant.name!r} given without {variant.needs!r}, which it needs."
            )
    return wanted


def config(
    dataset: str,
    data: TransferData,
    network: Network,
    seed: int = 0,
    variant: Variant | None = None,
    space: int | None = None,
) -> dict[str, Any]:
    """Return palate.yaml.

    Parameters
    ----------
    dataset : str
        As of ``TransferData.prepare``.
    data : TransferData
    network : Network
    seed : int
        Of the encoder. Raw features are built without a variant, and so with seed 0: encoders of
        all seeds read the same item vectors.
    variant : Variant, optional
    space : int, optional
        Number of the space of ``variant.needs``.
    """
    found: dict[str, Any] = {"dataset": dataset, "data_dir": "data", "seed": seed}
    if variant is None:
        return found
    found["encoder"] = variant.encoder
    epochs = {"max_epochs": network.max_epochs, "patience": network.patience}
    if variant.positives is not None:
        found["clue"] = {
            "width": network.width,
            "item_layers": network.layers,
            "service_layers": network.layers,
        }
        found["clue_training"] = {
            "positives": variant.positives,
            "batch_size": network.batch_size,
            **epochs,
            **data.clue_training,
        }
    else:
        found["training"] = {"max_rows": network.max_rows, **epochs}
    for section, fields in variant.sections.items():
        told = {key: space if value == "{space}" else value for key, value in fields.items()}
        found[section] = found.get(section, {}) | told
    return found
