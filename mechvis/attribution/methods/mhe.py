"""MHE: walk through masks by Metropolis-Hastings, staying where little of the output changes; average where you were.

1. Dissimilarity of a mask: `d(m) = ||p(image) - p(masked image)||_4` over the class probabilities.
2. From m, every cell flips with probability `min(d + beta, most)`: far from the image's output the walk takes large
   steps, near it small ones.
3. Accept m' with `min(1, e^(-d') Q(m' -> m) / (e^(-d) Q(m -> m')))`. If both are within `near` of the output, the one
   with the smaller area is preferred: a mask that keeps more than m is refused, one that does not is accepted.
4. Map: mean of the masks at which the walk stood, weighted by `1 - d`: how often a cell was kept in masks that preserve
   the output.

The output of all classes is preserved, so every class gets the same map. `positives` makes it about the target: only a
fall of its probability counts as dissimilar, so cells against it are free to go, and go. `scales` averages walks on
several grids. The walk is a chain: its masks are not independent, so seeds differ more than `iterations` suggests. On
the bundled classifier (64 cells, 1000 steps) maps of two seeds agree with a rank correlation of .09 only, and mark the
object no better than chance (AUROC .51): compare seeds before reading such a map.

Source: methods.md 10 [N]. Where we differ [X]: flip probabilities are clamped (d + beta can exceed 1, and at 1 the walk
would be deterministic); the weight 1 - d; the reading of "positives only".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.attribution.cells import CellGame
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.patches import patch_groups
from mechvis.removal.operators import Operator

Dissimilarity = Callable[[Bool[Tensor, "image row cell"]], Float[Tensor, "image row"]]
"""How far the output under each mask is from the image's own."""


def walk(
    dissimilarity: Dissimilarity,
    generators: list[torch.Generator],
    n_cells: int,
    *,
    iterations: int,
    beta: float = 0.1,
    near: float = 0.1,
    most: float = 0.95,
) -> tuple[Float[Tensor, "image cell"], Float[Tensor, " image"]]:
    """Weighted mean of the masks of a walk that starts from the whole image.

    Args:
        dissimilarity: of masks; one row per image is asked at a time.
        generators: one per image.
        n_cells: cells.
        iterations: steps.
        beta: least probability of a flip.
        near: within it, areas are compared instead.
        most: largest probability of a flip.

    Returns:
        Mean masks, from 0 to 1, and the share of accepted steps.

    Raises:
        OutOfRange: no step, or probabilities outside `0 < beta <= most < 1`.

    Example:
        >>> kept = walk(lambda m: 1.0 - m[..., 0].double(), [torch.Generator().manual_seed(0)], 4, iterations=300)[0]
        >>> kept[0].argmax().item()
        0
    """
    if iterations < 1 or not 0 < beta <= most < 1 or not near >= 0:
        raise OutOfRange(
            f"iterations={iterations}, beta={beta}, most={most}, near={near}: at least one step, and 0 < beta <= most "
            "< 1."
        )
    n_images = len(generators)
    mask = torch.ones(n_images, n_cells, dtype=torch.bool)
    here = torch.zeros(n_images, dtype=torch.float64)  # the whole image is where the output comes from
    total, weights = torch.zeros(n_images, n_cells, dtype=torch.float64), torch.zeros(n_images, dtype=torch.float64)
    accepted = torch.zeros(n_images, dtype=torch.float64)
    for _ in range(iterations):
        drawn = torch.stack([torch.rand(n_cells + 1, generator=one, dtype=torch.float64) for one in generators])
        chance = (here + beta).clamp(max=most)
        flips = drawn[:, :n_cells] < chance[:, None]
        tried = mask ^ flips
        there = dissimilarity(tried[:, None])[:, 0].double().cpu()
        back = (there + beta).clamp(max=most)
        count = flips.sum(1)
        ratio = here - there + _log_chance(back, count, n_cells) - _log_chance(chance, count, n_cells)
        accept = drawn[:, n_cells].log() < ratio
        both = (here < near) & (there < near)
        accept = torch.where(both, tried.sum(1) <= mask.sum(1), accept)
        mask = torch.where(accept[:, None], tried, mask)
        here = torch.where(accept, there, here)
        weight = (1 - here).clamp(min=0)
        total += weight[:, None] * mask
        weights += weight
        accepted += accept
    return total / weights.clamp(min=1e-12)[:, None], accepted / iterations


def _log_chance(chance: Float[Tensor, " image"], flips: Tensor, n_cells: int) -> Float[Tensor, " image"]:
    """Log-probability of exactly these flips."""
    return flips * chance.log() + (n_cells - flips) * torch.log1p(-chance)


@dataclass(frozen=True, kw_only=True)
class Mhe(Method):
    """How often a cell is kept in masks that preserve the output.

    Example:
        >>> mechvis.attribute(model, images, Mhe(positives=True))              # doctest: +SKIP
    """

    NAME = "mhe"
    CLAIMS = Claims(class_specific=False, signed=False, random=True, reads="outputs")
    SOURCE = "methods.md 10"
    operator: str | Operator = "token_drop"
    """What stands in the place of missing patches."""
    iterations: int = 2000
    """Steps of each walk."""
    beta: float = 0.1
    """Least probability that a cell flips."""
    near: float = 0.1
    """Dissimilarity within which the smaller area is preferred."""
    positives: bool = False
    """Only a fall of the target's probability counts: the map is then about the target."""
    scales: tuple[int, ...] = (8,)
    """Cells a side, one walk each; grids finer than the patches become the patches."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        if not self.scales or not all(isinstance(side, int) and side >= 1 for side in self.scales):
            raise OutOfRange(f"scales={self.scales}: numbers of cells a side, at least one.")
        grids = dict.fromkeys(tuple(min(side, most) for most in ask.grid) for side in self.scales)
        found, shares = [], []
        for grid in grids:
            members = patch_groups(ask.model, ask.pixels, grid).members[0, :, ask.n_prefix :]
            cells = CellGame(game=ask.game(self.operator), members=members)
            generators = [ask.generator(i, f"mhe walk {grid}") for i in range(len(ask.pixels))]
            kept, share = walk(
                self._dissimilarity(ask, cells),
                generators,
                len(members),
                iterations=self.iterations,
                beta=self.beta,
                near=self.near,
            )
            found.append(kept @ members.double())  # every patch the share of its cell
            shares.append(share)
        return Maps(
            values=torch.stack(found).mean(0).to(ask.pixels),
            extra={"accepted": torch.stack(shares).mean(0)},
        )

    def _dissimilarity(self, ask: Question, cells: CellGame) -> Dissimilarity:
        whole = torch.ones(len(ask.pixels), 1, ask.n_patches)
        if self.positives:
            game = replace(cells.game, target=ask.target.reading("prob"))
            clean = game.scores(whole)
            return lambda masks: (clean - game.scores(cells.masks(masks))).clamp(min=0)
        clean_all = cells.game.outputs(whole).double().softmax(-1)

        def fourth(masks: Tensor) -> Tensor:
            away = cells.game.outputs(cells.masks(masks)).double().softmax(-1) - clean_all
            return away.abs().pow(4).sum(-1).pow(0.25)

        return fourth


def pnn(
    game: Any, maps: Float[Tensor, "image patch"], *, high: float = 0.5, low: float = 0.1
) -> Float[Tensor, " image"]:
    """Positive-negative-neutral score of maps: what hiding each of three parts does.

    The fall of the score when patches above `high` are hidden, plus the rise when those below `low` are, minus the
    change (either way) when those between are. A part without patches counts 0.

    Args:
        game: masks in, scores out (probabilities, so that maps of different images compare).
        maps: larger is more positive; scaled to 0 to 1 for each image.
        high, low: where the parts are cut.

    Raises:
        OutOfRange: not `0 <= low < high <= 1`.
        ShapeMismatch: maps that are not `[image patch]` of the game.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> maps = torch.tensor([[1.0, 0.9, 0, 0, 0.3, 0.3, 0.3, 0.3, 0.3]])
        >>> pnn(PatchGame(score=lambda m: m[..., 0] + m[..., 1] - m[..., 2] - m[..., 3]), maps).tolist()
        [4.0]
    """
    if not 0 <= low < high <= 1:
        raise OutOfRange(f"low={low}, high={high}: 0 <= low < high <= 1.")
    if maps.ndim != 2 or maps.shape[1] != game.n_patches:
        raise ShapeMismatch(f"maps are [image patch] over {game.n_patches} patches, got {list(maps.shape)}.")
    least, largest = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    scaled = (maps - least) / torch.where(largest > least, largest - least, 1.0)
    parts = [scaled > high, scaled < low, (scaled >= low) & (scaled <= high)]
    rows = torch.stack([torch.ones_like(parts[0]), *(~part for part in parts)], 1)
    clean, positive, negative, neutral = game.scores(rows).unbind(1)
    return (clean - positive) + (negative - clean) - (neutral - clean).abs()
