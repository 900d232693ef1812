"""One direction per neuron: what it does to the output, when it does something.

A neuron's second-order effect is a different vector on every image, but on the images where it is large it mostly
points one way (**C**; methods.md 2.4):

1. b_n = mean effect over the reference images.
2. Take the `top` images with the largest |phi_n - b_n|.
3. r_n = first right singular vector of their deviations (not centred again).
4. Sign: most of these images project positively on r_n.

Then `phi_n(I) ~ b_n + ((phi_n(I) - b_n) . r_n) r_n`. "Large for under 2 % of the images" is built into `top`: 100 of
about 5,000 images. Whether the other 98 % can be done without is a question of its own: `probes.second_order.claim`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData
from probes.second_order.effects import BATCH, Coefficients, chosen_neurons, coefficients, neuron_groups
from probes.second_order.readout import Of

TOP = 100
"""Images that a neuron's direction is fitted to (**C**)."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RankOne:
    """Mean and direction of the second-order effects of neurons, over reference images."""

    layer: int
    """Layer of the neurons."""
    neurons: Int[np.ndarray, " neuron"]
    """Which neurons."""
    mean: Float[np.ndarray, "neuron d_out"]
    """b_n."""
    direction: Float[np.ndarray, "neuron d_out"]
    """r_n, unit length; zeros for a neuron without an effect."""
    explained: Float[np.ndarray, " neuron"]
    """Share of the squared deviations of the top images that lies along r_n; NaN without an effect."""
    positive: Float[np.ndarray, " neuron"]
    """Share of the top images that project positively on r_n; NaN without an effect."""
    images: Int[np.ndarray, "neuron top"]
    """The top images, largest first."""
    sizes: Float[np.ndarray, "neuron top"]
    """|phi_n - b_n| of these."""
    alpha_mean: Float[np.ndarray, "term neuron"]
    """Mean of alpha, to measure other images against the same b_n."""
    n: int
    """Reference images."""

    def approximate(self, found: Coefficients, neuron: int) -> Float[np.ndarray, "image d_out"]:
        """b + ((phi - b) . r) r of one neuron (by position) on any images."""
        b, r = self.mean[neuron], self.direction[neuron]
        away = found.effects(neurons=[neuron])[:, 0] - b
        return b + (away @ r)[:, None] * r


def rank_one(found: Coefficients, *, top: int = TOP) -> RankOne:
    """Mean, direction and top images of every neuron.

    Args:
        found: effects on the reference images.
        top: images with the largest deviation that the direction is fitted to, at most all (**C**: 100).

    Raises:
        BadData: fewer than two images, or top below 1.

    Example:
        >>> rank_one(coefficients(model, images, 1)).direction.shape                    # doctest: +SKIP
        (512, 8)
    """
    if len(found) < 2 or top < 1:
        raise BadData(f"a direction needs two images and top of at least 1, got {len(found)} images, top={top}.")
    top = min(top, len(found))
    sizes = found.sizes()
    order = np.argsort(-sizes, axis=0, kind="stable")[:top].T
    largest = np.take_along_axis(sizes.T, order, axis=1)
    alpha_mean = found.alpha.mean(0, dtype=np.float64)
    n, d_out = len(found.neurons), found.vectors.shape[-1]
    direction, explained, positive = np.zeros((n, d_out)), np.full(n, np.nan), np.full(n, np.nan)
    for place in range(n):
        # Squares of effects far below the largest are rounding; a neuron of nothing but that has no direction.
        if not len(found.terms) or largest[place, 0] <= 1e-12 * max(1.0, float(np.abs(found.vectors[:, place]).max())):
            continue
        away = (found.alpha[order[place], :, place] - alpha_mean[:, place]) @ found.vectors[:, place].astype(np.float64)
        _, values, right = np.linalg.svd(away, full_matrices=False)
        along = away @ right[0]
        sign = 1.0 if (along > 0).mean() >= 0.5 else -1.0
        direction[place] = sign * right[0]
        explained[place] = values[0] ** 2 / (values**2).sum()
        positive[place] = (sign * along > 0).mean()
    return RankOne(
        layer=found.layer,
        neurons=found.neurons,
        mean=found.mean,
        direction=direction,
        explained=explained,
        positive=positive,
        images=order,
        sizes=largest,
        alpha_mean=alpha_mean,
        n=len(found),
    )


def summarise(
    model: Any,
    images: Any,
    layer: int,
    *,
    neurons: Sequence[int] | np.ndarray | None = None,
    top: int = TOP,
    of: Of = "output",
    unit: bool | None = None,
    budget: str | int | None = None,
    batch_size: int = BATCH,
    progress: bool = True,
) -> RankOne:
    """:func:`rank_one` of a layer in bounded memory: as many neurons at a time as the budget holds, a pass over the
    images for each group. The grouping does not change the numbers.

    Args:
        budget: memory for the effects of one group, e.g. `"2GB"`; the rest as in :func:`coefficients`.

    Raises:
        as :func:`coefficients` and :func:`rank_one`.
    """
    layer, chosen = chosen_neurons(model, layer, neurons)
    parts = [
        rank_one(
            coefficients(
                model, images, layer, neurons=chosen[group], of=of, unit=unit, batch_size=batch_size, progress=progress
            ),
            top=top,
        )
        for group in neuron_groups(model, layer, len(images), budget, n=len(chosen))
    ]
    if len(parts) == 1:
        return parts[0]
    joined = ("neurons", "mean", "direction", "explained", "positive", "images", "sizes")
    return RankOne(
        layer=layer,
        n=parts[0].n,
        alpha_mean=np.concatenate([part.alpha_mean for part in parts], axis=1),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in joined},
    )


def explained_elsewhere(found: Coefficients, fitted: RankOne) -> Float[np.ndarray, " neuron"]:
    """Share of the squared deviations from b_n that r_n explains on the images of `found`, e.g. images that it was not
    fitted to; NaN for a neuron without an effect.

    Raises:
        BadData: other neurons than those that were fitted.
    """
    if found.layer != fitted.layer or not np.array_equal(found.neurons, fitted.neurons):
        raise BadData("these are effects of other neurons than those whose directions are given.")
    total = (found.sizes(fitted.alpha_mean) ** 2).sum(0)
    along = np.einsum("knd,nd->kn", found.vectors.astype(np.float64), fitted.direction)
    projected = np.einsum("ikn,kn->in", found.alpha - fitted.alpha_mean, along)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (projected**2).sum(0) / total, np.nan)
