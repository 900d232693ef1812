"""Processes that share every batch (data parallel): `torch.distributed` under `torchrun`, nothing of our own.

Every process has the whole dictionary and an equal share of each batch. Sums that a loss needs go over all rows, so the
k·B largest of BatchTopK, variances and dead latents are those of the whole batch: two processes learn what one would.
"""

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from mechvis.errors import BadData
from mechvis.parallel import world
from mechvis.parallel.world import MEETING
from sae.team import ALONE, Team


class Ranks(Team):
    """The processes of a `torch.distributed` group."""

    def __init__(self, group=None):
        import torch.distributed as dist

        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes; bool counts as numbers."""
        import torch.distributed as dist

        value = value.long() if value.dtype == torch.bool else value.clone()
        dist.all_reduce(value, group=self.group)
        return value

    def largest(self, value: Tensor) -> Tensor:
        """Maximum over processes."""
        import torch.distributed as dist

        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.group)
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, which have equally many, in the order of ranks."""
        import torch.distributed as dist

        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows, group=self.group)
        return torch.cat(parts)

    def share(self, dictionary) -> None:
        """The first process's numbers for all."""
        import torch.distributed as dist

        first = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        for tensor in dictionary.state_dict().values():
            dist.broadcast(tensor, src=first, group=self.group)

    def average(self, gradients: Iterable[Tensor]) -> None:
        """Mean over processes, in place: one message for all of a type."""
        import torch.distributed as dist

        gradients = list(gradients)
        for dtype in {gradient.dtype for gradient in gradients}:
            some = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in some])
            dist.all_reduce(flat, group=self.group)
            flat /= self.size
            for gradient, part in zip(some, flat.split([gradient.numel() for gradient in some]), strict=True):
                gradient.copy_(part.view_as(gradient))


def team(device: str | None = None) -> Team:
    """The processes that were started together, or :data:`sae.team.ALONE`.

    Args:
        device: `cuda` for NCCL; default: gloo, which works on a CPU.

    Raises:
        BadData: the variables of `torchrun` contradict each other.
    """
    here = world()
    if here.size == 1:
        return ALONE
    start(device)
    return Ranks()


def start(device: str | None = None) -> None:
    """Join the other processes, once."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if not dist.is_available():
        raise BadData("this build of torch has no torch.distributed, so processes cannot train together.")
    if device is not None and device.startswith("cuda"):
        torch.cuda.set_device(world().device("cuda"))
    backend = "nccl" if device is not None and device.startswith("cuda") else "gloo"
    if MEETING in os.environ:  # started by `--launch`: they meet in a file
        here = world()
        place = f"file://{os.environ[MEETING]}"
        dist.init_process_group(backend, init_method=place, rank=here.rank, world_size=here.size)
    else:  # started by torchrun, which says where
        dist.init_process_group(backend)


def leave() -> None:
    """Wait for the others, then end the connection: a process that goes while others still talk to it breaks them."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
