"""H-Sets: which patches act together? Sets are grown along strong second derivatives and valued by Harsanyi dividends.

1. A mask mixes each patch's stream before block 0 with that of an image of the mean colour. Gradients of the score by
   the mask, along the path from nothing to the whole image, give each patch's share (integrated gradients).
2. Interaction of two patches: the entry of the Hessian by the mask, from differences of gradients at the whole image
   with one patch a step less (`step=1`: exact for games of pairs). Symmetrised; pairs below `mu` of the largest do not
   count.
3. Seeds are the patches with the largest shares, one a set; a set grows by the patch that interacts most with it, while
   it does and up to `size` patches. A patch belongs to one set.
4. A set is valued by the dividends of all its subsets T, `d(T) = sum_(S in T) (-1)^(|T|-|S|) v(S)` with
   `v(S) = f(only S kept) - f(none)`: what T does that none of its parts do. `2^size` passes a set.

Map: the value of a patch alone, plus its even share of the dividends of the sets that hold it. `interaction_sets`
gives the sets, their dividends and the matrix as a record. On the bundled classifier the map is little more than what
patches do alone, which marks the background (AUROC .32 against the object, like `Occlusion(direction="reveal")`): read
the sets.

Source: methods.md 10 [N]. Where we differ [X]: patches and not pixels; differences of gradients and not
Hessian-vector products (fused attention has no second derivative); `v` is the score of the kept set by a removal game,
not a path integral of absolute gradients, so that dividends keep their sign.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.methods.shapley import all_masks
from mechvis.attribution.question import Question
from mechvis.attribution.tail import stream_at, tail
from mechvis.errors import OutOfRange
from mechvis.removal.operators import Operator

MOST = 8
"""Patches of a set at most: 256 passes."""


def dividends(values: Float[Tensor, "image row"]) -> Float[Tensor, "image row"]:
    """Harsanyi dividends of all sets of players, from the values of all sets (counting up in binary).

    Example:
        >>> dividends(torch.tensor([[0.0, 2.0, 3.0, 10.0]])).tolist()      # none, {0}, {1}, {0, 1}
        [[0.0, 2.0, 3.0, 5.0]]
    """
    found, n = values.clone(), values.shape[1].bit_length() - 1
    for player in range(n):  # Moebius transform, one player at a time
        split = rearrange(found, "image (high two low) -> image high two low", two=2, low=2**player)
        found = torch.stack([split[:, :, 0], split[:, :, 1] - split[:, :, 0]], 2).flatten(1)
    return found


def set_dividends(game: Any, sets: Bool[Tensor, "image set patch"], size: int) -> Float[Tensor, "image set subset"]:
    """Dividends of all subsets of each set, by a removal game; members are counted from the first patch on.

    Subsets that would need more members than a set has are 0.

    Raises:
        OutOfRange: sets larger than 8.
    """
    if not 1 <= size <= MOST:
        raise OutOfRange(f"size={size}: between 1 and {MOST} patches, since a set costs 2^size passes.")
    n_images, n_sets, n_patches = sets.shape
    members = sets.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :size]
    real = sets.gather(-1, members)
    subsets = all_masks(size)
    rows = torch.zeros(n_images, n_sets, len(subsets), n_patches, dtype=torch.bool)
    index = repeat(members, "i s m -> i s subset m", subset=len(subsets))
    rows.scatter_(-1, index, subsets[None, None] & real[:, :, None])
    scores = game.scores(rearrange(rows, "i s subset p -> i (s subset) p")).double().cpu()
    values = rearrange(scores, "i (s subset) -> (i s) subset", s=n_sets)
    found = rearrange(dividends(values - values[:, :1]), "(i s) subset -> i s subset", i=n_images)
    # Leaving a player out that is none changes nothing: such dividends are rounding.
    return torch.where((subsets[None, None] & ~real[:, :, None]).any(-1), 0.0, found)


def grow(
    shares: Float[Tensor, " patch"], interactions: Float[Tensor, "patch patch"], *, n_sets: int, size: int, mu: float
) -> Bool[Tensor, "set patch"]:
    """Sets of patches that interact, from the patches with the largest shares.

    Args:
        shares: importance of each patch; its size counts, not its sign.
        interactions: symmetric; its size counts.
        n_sets: sets; empty ones where no patch is left.
        size: patches of a set at most.
        mu: share of the largest interaction from which two patches belong together.

    Example:
        >>> both = torch.zeros(4, 4)
        >>> both[0, 2] = both[2, 0] = 1.0
        >>> grow(torch.tensor([3.0, 2, 0, 0]), both, n_sets=2, size=2, mu=0.5).int().tolist()
        [[1, 0, 1, 0], [0, 1, 0, 0]]
    """
    strength = interactions.abs().clone().fill_diagonal_(0)
    least = mu * strength.max()
    free = torch.ones(len(shares), dtype=torch.bool)
    found = torch.zeros(n_sets, len(shares), dtype=torch.bool)
    for one in found:
        if not bool(free.any()):
            break
        one[torch.where(free, shares.abs(), -1.0).argmax()] = True
        free &= ~one
        while int(one.sum()) < size:
            ties = torch.where(free, strength[one].amax(0), -1.0)
            into = ties.argmax()
            if ties[into] <= 0 or ties[into] < least:
                break
            one[into] = True
            free[into] = False
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the search found for a batch."""

    sets: Bool[Tensor, "image set patch"]
    """Sets of patches; rows may be empty."""
    dividends: Float[Tensor, "image set subset"]
    """Of all subsets of each set, counting up in binary over its patches."""
    interactions: Float[Tensor, "image patch patch"]
    """Hessian by the mask."""
    shares: Float[Tensor, "image patch"]
    """Integrated gradients by the mask."""
    alone: Float[Tensor, "image patch"]
    """`f(only this patch kept) - f(none)`."""


@dataclass(frozen=True, kw_only=True)
class HSets(Method):
    """Patches by themselves and in the sets in which they act together.

    Example:
        >>> mechvis.attribute(model, images, HSets(size=3))                    # doctest: +SKIP
    """

    NAME = "h_sets"
    CLAIMS = Claims(class_specific=True, signed=True, reads="gradient")
    SOURCE = "methods.md 10"
    operator: str | Operator = "token_drop"
    """What stands in the place of missing patches when sets are valued."""
    n_sets: int = 5
    """Sets of an image."""
    size: int = 4
    """Patches of a set at most."""
    mu: float = 0.5
    """Share of the largest interaction from which two patches belong together."""
    step: float = 1.0
    """How much of a patch is taken away for its row of the Hessian."""
    path: int = 8
    """Points on the path of integrated gradients."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        found = search(self, ask)
        subsets = all_masks(self.size).sum(1).clamp(min=1)
        share = torch.where(all_masks(self.size).sum(1) > 1, found.dividends / subsets, 0.0)
        members = found.sets.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., : self.size]
        each = torch.einsum("isu,um->ism", share, all_masks(self.size).double())
        values = found.alone.double().cpu()
        values = values.scatter_add(1, members.flatten(1), each.flatten(1))
        return Maps(values=values.to(ask.pixels), extra={"sets": found.sets.double()})


def search(method: HSets, ask: Question) -> Found:
    """Sets, dividends and interactions of one batch.

    Raises:
        OutOfRange: settings outside their ranges.
    """
    if not (method.n_sets >= 1 and 0 <= method.mu <= 1 and 0 < method.step <= 1 and method.path >= 1):
        raise OutOfRange(
            f"n_sets={method.n_sets}, mu={method.mu}, step={method.step}, path={method.path}: at least one set and one "
            "point, mu from 0 to 1, step above 0 and up to 1."
        )
    size = min(method.size, ask.n_patches)
    if not 1 <= method.size <= MOST:
        raise OutOfRange(f"size={method.size}: between 1 and {MOST} patches, since a set costs 2^size passes.")
    shares, interactions = _derivatives(method, ask)
    sets = torch.stack(
        [
            grow(one, both, n_sets=method.n_sets, size=size, mu=method.mu)
            for one, both in zip(shares, interactions, strict=True)
        ]
    )
    game = ask.game(method.operator)
    rows = torch.cat([torch.zeros(1, ask.n_patches, dtype=torch.bool), torch.eye(ask.n_patches, dtype=torch.bool)])
    scores = game.scores(repeat(rows, "row patch -> image row patch", image=len(ask.pixels)))
    return Found(
        sets=sets,
        dividends=set_dividends(game, sets, method.size),
        interactions=interactions,
        shares=shares,
        alone=scores[:, 1:] - scores[:, :1],
    )


def _derivatives(method: HSets, ask: Question) -> tuple[Tensor, Tensor]:
    """Integrated gradients and Hessian by a mask over the stream before block 0."""
    blank = ask.pixels.mean((2, 3), keepdim=True).expand_as(ask.pixels).contiguous()
    stream = stream_at(ask, 0)
    with torch.no_grad():
        nothing = ask.parts.embed(blank)
    size, n = tuple(ask.pixels.shape[2:]), ask.n_patches
    points = (torch.arange(method.path, dtype=torch.float64) + 0.5) / method.path
    less = 1 - method.step * torch.eye(n, dtype=torch.float64)
    rows = torch.cat([repeat(points, "k -> k p", p=n), torch.ones(1, n, dtype=torch.float64), less]).to(stream)
    each = []
    for image in range(len(stream)):
        slopes = []
        for some in rows.split(ask.batch_size):
            masks = some.clone().requires_grad_(True)
            with torch.enable_grad():
                full = F.pad(masks, (ask.n_prefix, 0), value=1.0)[..., None]
                mixed = torch.lerp(nothing[image], stream[image], full)
                where = torch.full((len(some),), image, device=stream.device)
                scores = ask.target.read(tail(ask.model, mixed, 0, size), where)
                slopes.append(torch.autograd.grad(scores.sum(), masks)[0])
            ask.cost.forwards += len(some)
            ask.cost.backwards += len(some)
        each.append(torch.cat(slopes))
    slopes = torch.stack(each).double().cpu()
    at_all, at_less = slopes[:, method.path], slopes[:, method.path + 1 :]
    hessian = (at_all[:, None] - at_less) / method.step
    return slopes[:, : method.path].mean(1), (hessian + hessian.mT) / 2
