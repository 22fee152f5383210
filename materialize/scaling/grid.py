"""The grid of a scaling study: sizes of the network, batches, lengths and shares of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from encoder.clue.config import ClueTrainingConfig
from encoder.clue.grad_cache import Chunks
from encoder.clue.network import ClueConfig

__all__ = ["GRIDS", "Grid", "Point", "Size", "find_grid"]


@dataclass(frozen=True)
class Size:
    """A network: ``layers`` in each of the two transformers."""

    width: int
    layers: int

    @property
    def name(self) -> str:
        """For example ``w128l2``."""
        return f"w{self.width}l{self.layers}"


@dataclass(frozen=True)
class Point:
    """One training of the grid.

    Attributes
    ----------
    size : Size
    batch_size : int
        Users a step.
    max_events : int
        Newest events of a user in a service.
    user_share : float
        Share of the training users.
    seed : int
    """

    size: Size
    batch_size: int
    max_events: int
    user_share: float
    seed: int = 0

    @property
    def name(self) -> str:
        """Unique in a grid, for example ``w128l2-b256-e32-u100-s0``."""
        share = f"u{round(100 * self.user_share)}"
        return f"{self.size.name}-b{self.batch_size}-e{self.max_events}-{share}-s{self.seed}"

    def config(self, grid: Grid, max_steps: int | None = None) -> ClueTrainingConfig:
        """Return how this point is trained."""
        model = ClueConfig(
            width=self.size.width,
            item_layers=self.size.layers,
            service_layers=self.size.layers,
            head_width=min(32, self.size.width),
            max_item_tokens=grid.max_item_tokens,
            max_events=self.max_events,
            table_spread=grid.table_spread,
            seed=self.seed,
        )
        return ClueTrainingConfig(
            model=model,
            batch_size=self.batch_size,
            max_epochs=grid.max_epochs,
            max_steps=max_steps,
            warmup_steps=grid.warmup_steps,
            user_share=self.user_share,
            validation_users=grid.validation_users,
            patience=grid.patience,
            chunks=grid.chunks,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Grid:
    """What is trained: every size with every batch, and beside it other lengths and shares.

    Attributes
    ----------
    name : str
    sizes : tuple of Size
    batch_sizes : tuple of int
    max_events : tuple of int
        Tried with the middle batch; the longest is the one that batches are tried with.
    user_shares : tuple of float
        Tried with the middle batch; batches are tried with the largest.
    budget : float
        Operations of a training (forward and backward, see `Flops.model`).
    vocabulary, max_item_tokens : int
    validation_users : int
        Negatives of the judged loss and one: the same everywhere, or losses cannot be compared.
    max_epochs, patience, warmup_steps : int
    table_spread : float
        See `encoder.clue.network.ClueConfig`.
    seeds : tuple of int
        Batches are tried with each, lengths and shares with the first.
    chunks : Chunks
    """

    name: str
    sizes: tuple[Size, ...]
    batch_sizes: tuple[int, ...]
    max_events: tuple[int, ...]
    user_shares: tuple[float, ...]
    budget: float
    vocabulary: int = 8192
    max_item_tokens: int = 24
    validation_users: int = 256
    max_epochs: int = 1000
    patience: int = 8
    warmup_steps: int = 50
    table_spread: float = 0.02
    seeds: tuple[int, ...] = (0,)
    chunks: Chunks = field(default_factory=Chunks)

    def points(self) -> list[Point]:
        """Return all trainings, each once: all batches, cheap sizes first, then what is beside."""
        length, share = max(self.max_events), max(self.user_shares)
        middle = self.batch_sizes[len(self.batch_sizes) // 2]
        bases = [Point(size, middle, length, share, self.seeds[0]) for size in self.sizes]
        points = [replace(base, batch_size=k) for base in bases for k in self.batch_sizes]
        points += [replace(base, max_events=k) for base in bases for k in self.max_events]
        points += [replace(base, user_share=k) for base in bases for k in self.user_shares]
        points += [
            replace(base, batch_size=k, seed=seed)
            for seed in self.seeds[1:]
            for base in bases
            for k in self.batch_sizes
        ]
        return list({point.name: point for point in points}.values())


_SMALL = (Size(32, 1), Size(64, 1), Size(96, 2), Size(128, 2), Size(192, 3), Size(256, 3))
_LARGE = (Size(256, 4), Size(384, 6), Size(512, 8), Size(768, 8))

GRIDS = {
    grid.name: grid
    for grid in (
        # 0.03 to 5 million parameters beside the token table; a run is some minutes of a core.
        Grid(
            "cpu",
            _SMALL,
            (32, 128, 512),
            (4, 8, 16),
            (0.25, 0.5, 1.0),
            3e13,
            max_item_tokens=16,
            # The schedule must end where small networks have learned what there is.
            max_epochs=12,
            # The largest network has some seventy steps of the largest batch.
            warmup_steps=20,
            table_spread=0.002,
            # Some hundreds of users are held out: a seed does as much as a batch.
            seeds=(0, 1),
        ),
        # Up to 110 million; a run is some minutes of one accelerator.
        Grid(
            "gpu",
            (*_SMALL[1::2], *_LARGE),
            (64, 128, 256, 512, 1024, 2048),
            (16, 32, 64),
            (0.25, 0.5, 1.0),
            2e16,
            chunks=Chunks(16_384, 4096),
        ),
        # Shows that everything runs; its figures mean nothing.
        Grid("smoke", _SMALL[:2], (16, 32), (4, 8), (0.5, 1.0), 2e9, 512, 8, 16, patience=2),
    )
}


def find_grid(name: str, names: Sequence[str] = tuple(GRIDS)) -> Grid:
    """Return a grid.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if name not in GRIDS:
        raise ValueError(f"Grid {name!r} given; known: {', '.join(sorted(names))}.")
    return GRIDS[name]
