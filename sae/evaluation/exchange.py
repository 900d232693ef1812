"""Which latents are exchanged between a row and its counterfactual, and how much of what is written that is.

See `sae.evaluation.control` for what it is for. Latents are put in order once, by one of three ways, and the first k of
the order are exchanged: `greedy` takes next what brings the row nearest to its counterfactual, `f1` what detects the
old or the new value best, `random` anything that differs.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.errors import BadData, unknown
from sae.evaluation.written import strengths

WAYS = ("f1", "greedy", "random")
Way = Literal["f1", "greedy", "random"]


@torch.no_grad()
def weights(dictionary: Any, rows: Float[Tensor, "row d"]) -> Float[np.ndarray, "row latent"]:
    """Share of what is written that each latent is responsible for; they sum to the whole of it.

    w_i = f_i d_i·(ĥ - b) / |ĥ - b|², b what is written without any latent. Rows without an active latent get zeros.
    """
    codes, directions = strengths(dictionary, rows), dictionary.directions.double()
    written = codes @ directions
    whole = written.square().sum(1, keepdim=True)
    share = codes * (written @ directions.T) / whole.clamp_min(1e-300)
    return torch.where(whole > 0, share, 0.0).cpu().numpy()


def exchange(
    change: Float[Tensor, "image token latent"],
    target: Float[Tensor, "image token d"],
    directions: Float[Tensor, "latent d"],
    k: int,
    way: Way,
    *,
    rank: Float[Tensor, "image latent"] | None = None,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "image latent"]:
    """Which latents are exchanged, at most k of each image (all its tokens together).

    Args:
        change: f' - f.
        target: h' - h.
        directions: what a unit of each latent writes.
        k: at most.
        way: f1, greedy, random.
        rank: for f1: what latents are ranked by, larger first.
        generator: for random.

    Raises:
        UnknownName: another way.
        BadData: k below one, or no rank for f1.
    """
    return exchanges(change, target, directions, (k,), way, rank=rank, generator=generator)[k]


def exchanges(
    change: Float[Tensor, "image token latent"],
    target: Float[Tensor, "image token d"],
    directions: Float[Tensor, "latent d"],
    ks: Sequence[int],
    way: Way,
    *,
    rank: Float[Tensor, "image latent"] | None = None,
    generator: torch.Generator | None = None,
) -> dict[int, Bool[Tensor, "image latent"]]:
    """:func:`exchange` for several k at once: latents are put in order once, and the first k of it are taken."""
    if way not in WAYS:
        raise unknown("way to choose latents", way, WAYS)
    if not ks or min(ks) < 1:
        raise BadData(f"k={min(ks, default=0)}: at least one latent is exchanged.")
    if way == "f1" and rank is None:
        raise BadData("way='f1' needs rank=, the F1 of each latent.")
    moves = (change != 0).any(1)
    most = min(max(ks), moves.shape[1])
    if way == "greedy":
        order = _greedy(change, target, directions, most, moves)
    else:
        if way == "random":
            rank = torch.rand(moves.shape, generator=generator, dtype=torch.float64).to(moves.device)
        order = torch.where(moves, rank.double(), -torch.inf).topk(most, dim=1).indices
        order = torch.where(moves.gather(1, order), order, -1)
    return {k: _mask(order[:, :k], moves.shape[1]) for k in ks}


def _mask(order: Tensor, n_latents: int) -> Tensor:
    """Which latents stand in the order; -1: none."""
    chosen = torch.zeros(len(order), n_latents + 1, dtype=torch.bool, device=order.device)
    return chosen.scatter(1, torch.where(order < 0, n_latents, order), True)[:, :n_latents]


def _greedy(change: Tensor, target: Tensor, directions: Tensor, k: int, moves: Tensor) -> Tensor:
    """One latent after the other: the one that lowers Σ_token |target - what was moved|² most; -1 once none does."""
    left, free, order = target.double(), moves.clone(), []
    D, c = directions.double(), change.double()
    cost = c.square().sum(1) * D.square().sum(1)
    rows = torch.arange(len(c), device=c.device)
    for _ in range(k):
        gain = 2 * (c * (left @ D.T)).sum(1) - cost
        best, at = torch.where(free, gain, -torch.inf).max(1)
        better = best > 0
        order.append(torch.where(better, at, -1))
        free[rows[better], at[better]] = False
        step = c[rows, :, at][:, :, None] * D[at][:, None]
        left = left - torch.where(better[:, None, None], step, 0.0)
    return torch.stack(order, 1)
