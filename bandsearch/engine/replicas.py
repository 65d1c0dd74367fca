"""Replicas: several engines train one session as one, each on its share of every batch (data parallelism)."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

Item = TypeVar("Item")

# All wait for the slowest, whose step of a large model may take a minute on a CPU; a lost engine ends it sooner.
PATIENCE = timedelta(minutes=10)
# All are asked to meet at once, and have nothing else to do.
MEETING = timedelta(minutes=1)


class Replicas:
    """This engine's place among `size` engines that hold the same factors and gradients, and so take the same steps.

    What one does between two sums all have to do: `total` and `any` wait for everyone.
    """

    def __init__(self, store: Path, rank: int, size: int, device: torch.device) -> None:
        """Meets the others at the file `store`, which all have to name. An engine is in one group at a time. Raises
        where somebody does not come."""
        leave()
        meeting = dist.FileStore(str(store), size)
        # The group's own patience would also be that of whoever waits for one that failed on its way.
        meeting.set(f"here/{rank}", "")
        meeting.wait([f"here/{other}" for other in range(size)], MEETING)
        # They are on one machine, and nobody else is to be talked to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        on_gpu = device.type != "cpu"
        if on_gpu:
            # NCCL takes memory of its own.
            torch.cuda.empty_cache()
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            # With a device it connects here, where a failure is met by training apart.
            device_id=device if on_gpu else None,
            store=meeting,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        self._rank, self._size, self._device = rank, size, device

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This engine's part of `items`; of items that ascend by length every engine has some of each length."""
        return items[self._rank :: self._size]

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of everyone's `tensor`, in its place."""
        dist.all_reduce(tensor)
        return tensor

    def totals(self, *numbers: float) -> list[float]:
        """The sum of everyone's numbers, one by one."""
        sums = self.total(torch.tensor(numbers, dtype=torch.float64, device=self._device))
        return [float(each) for each in sums.cpu()]

    def any(self, flag: bool) -> bool:
        """Whether it is true for anyone."""
        return self.totals(flag) != [0.0]


@contextmanager
def leaving(*told: type[Exception]) -> Iterator[None]:
    """Whoever fails inside leaves its group, but for errors that the others have been told: they would wait for its
    part of a sum. On a CPU they fail then, too; accelerators go on waiting until PATIENCE ends, or the run."""
    try:
        yield
    except told:
        raise
    except BaseException as error:
        # Of a sum that failed they hold the group, and with it its connections.
        traceback.clear_frames(error.__traceback__)
        leave()
        raise


def leave() -> None:
    """Out of the group, if there is one: a second one cannot be made, and what it holds on an accelerator is free."""
    if dist.is_initialized():
        dist.destroy_process_group()
    # torch counts the groups of a process, one that failed to form too, and looks for the others under that number.
    distributed_c10d._world.group_count = 0
