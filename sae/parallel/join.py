"""Who does what among processes that were started together: a grid of shares of the batch and shares of the latents."""

from mechvis.errors import BadData
from mechvis.parallel import world
from sae.parallel.team import Ranks, start
from sae.shards import WHOLE, Shards
from sae.team import ALONE, Team


def join(shards: int = 1, device: str | None = None) -> tuple[Team, Shards]:
    """This process's team and shards, to hand to `sae.train`.

    Args:
        shards: processes that share the latents of a dictionary; the others share the batch.
        device: `cuda` for NCCL.

    Raises:
        BadData: the number of processes is no multiple of `shards`.

    Example:
        >>> join()[0].size
        1
    """
    here = world()
    if shards < 1 or here.size % shards:
        raise BadData(f"shards={shards} of {here.size} processes: start a multiple of that many.")
    if here.size == 1:
        return ALONE, WHOLE
    import torch.distributed as dist

    start(device)
    from sae.parallel.sharded import Sharded

    if shards == 1:
        return Ranks(), WHOLE
    if shards == here.size:
        return ALONE, Sharded()
    mine: list = [None, None]
    for first in range(0, here.size, shards):
        ranks = list(range(first, first + shards))
        group = dist.new_group(ranks)
        if here.rank in ranks:
            mine[1] = group
    for offset in range(shards):
        ranks = list(range(offset, here.size, shards))
        group = dist.new_group(ranks)
        if here.rank in ranks:
            mine[0] = group
    return Ranks(mine[0]), Sharded(mine[1])
