"""Which of several processes is this one, and which device is its own.

Read from the environment, nothing is started and nobody is asked: `torchrun` sets `RANK`, `WORLD_SIZE`, `LOCAL_RANK`
and `LOCAL_WORLD_SIZE`; :func:`mechvis.parallel.start` sets the same with `MECHVIS_` before. A process with neither is
alone.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from mechvis.errors import BadData

LAUNCHED = "MECHVIS_RANK"
"""Set in the processes that :func:`mechvis.parallel.start` starts, and in no other."""

MEETING = "MECHVIS_MEETING"
"""Where those processes find the file through which `torch.distributed` brings them together."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that do one job."""

    rank: int = 0
    """Number of this process, from 0; rank 0 prints."""
    size: int = 1
    """How many processes there are."""
    local_rank: int = 0
    """Its number on this machine."""
    local_size: int = 1
    """How many there are on this machine."""

    @property
    def leads(self) -> bool:
        """Does this process print, show progress and write reports?"""
        return self.rank == 0

    def device(self, wanted: str | None = None) -> str | None:
        """The device of this process: `cuda` becomes `cuda:N`, one accelerator per process; others stay as they are.

        Args:
            wanted: `cuda`, `cpu`, ..., or None to keep a model where it is.

        Example:
            >>> World(rank=5, size=8, local_rank=1, local_size=4).device("cpu")
            'cpu'
        """
        if wanted != "cuda" or self.size == 1:
            return wanted
        import torch

        # A cluster that shows each task its own accelerator only shows one, whatever the rank.
        return f"cuda:{self.local_rank % max(1, torch.cuda.device_count())}"


def world(environment: Mapping[str, str] | None = None) -> World:
    """This process among those that do one job.

    Args:
        environment: default: that of the process.

    Raises:
        BadData: the variables contradict each other; says which.

    Example:
        >>> world({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
        World(rank=3, size=8, local_rank=1, local_size=2)
        >>> world({})
        World(rank=0, size=1, local_rank=0, local_size=1)
    """
    environment = os.environ if environment is None else environment
    prefix = "MECHVIS_" if LAUNCHED in environment else ""
    if not (f"{prefix}RANK" in environment and f"{prefix}WORLD_SIZE" in environment):
        return World()
    rank, size = _number(environment, f"{prefix}RANK"), _number(environment, f"{prefix}WORLD_SIZE")
    local_size = _number(environment, f"{prefix}LOCAL_WORLD_SIZE", size)
    local_rank = _number(environment, f"{prefix}LOCAL_RANK", rank % max(1, local_size))
    if not (rank < size and local_rank < local_size <= size):
        raise BadData(
            f"{prefix}RANK={rank} of {prefix}WORLD_SIZE={size} ({prefix}LOCAL_RANK={local_rank} of "
            f"{prefix}LOCAL_WORLD_SIZE={local_size}) cannot be: ranks count from 0 and end before the size. "
            "Start the processes with torchrun or with --launch, or unset these variables."
        )
    return World(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise BadData(f"{name}={text!r} is not a number. Start the processes with torchrun or with --launch.")
    return int(text)
