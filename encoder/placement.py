"""Where training runs: one CPU or GPU, or one process a GPU under ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["DeviceChoice", "Placement", "Precision", "placement"]

DeviceChoice = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Placement:
    """A process's device and its place among the processes that train together.

    Attributes
    ----------
    device : torch.device
    rank, world_size : int
        0 and 1 for a single process.
    """

    device: torch.device
    rank: int
    world_size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, module: nn.Module, compiled: bool) -> nn.Module:
        """Return ``module`` on the device, with gradients averaged over the processes."""
        module = module.to(self.device)
        if self.world_size > 1:
            module = DistributedDataParallel(module)
        # The compiled module is called like the one that went in.
        return torch.compile(module) if compiled else module  # type: ignore[return-value]

    def autocast(self, precision: Precision) -> torch.autocast:
        """Return the context of a forward pass; ``auto`` is bfloat16 on GPUs that have it."""
        half = precision == "bfloat16" or (
            precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.world_size > 1:
            distributed.barrier()

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over the processes."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in their order; gradients flow to one's own only.

        Parameters
        ----------
        rows : float (n, dim)
            As many in every process.
        """
        if self.world_size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world_size)]
        distributed.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)  # (world_size * n, dim)

    def agreed(self, values: Tensor) -> Tensor:
        """Return the leading process's ``values``, so that all take the same decision."""
        if self.world_size > 1:
            distributed.broadcast(values, src=0)
        return values


@contextmanager
def placement(device: DeviceChoice = "auto") -> Iterator[Placement]:
    """Yield where this process trains.

    Started by ``torchrun --nproc-per-node=N``, the N processes join one group (NCCL on GPUs, Gloo
    on CPUs) and leave it at the end; each takes the GPU of its local rank.

    Raises
    ------
    ValueError
        ``cuda`` was asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ValueError("device 'cuda' given, but torch sees no GPU. Use 'auto' or 'cpu'.")
    kind = "cuda" if has_gpu and device != "cpu" else "cpu"
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Placement(torch.device(kind), 0, 1)
        return
    place = torch.device(kind)
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Placement(place, distributed.get_rank(), world_size)
    finally:
        distributed.destroy_process_group()
