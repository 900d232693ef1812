"""An ambiguous concept taken apart at an earlier layer (CRAFT's recursion; methods.md 12, **C**).

A concept of a late layer may be two things that the model has put together: a wheel and a window, both "car". Where it
is strong, the same pieces at an earlier layer may still be apart:

1. Take the pieces whose code of the concept is in the top tenth of those that have any.
2. Factor what an earlier site holds for them.
3. Say how each sub-concept takes part: its share of the codes, and how well it follows the concept over all pieces.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.record import finite
from probes.concepts.factors import Factorisation, Method, factorise
from probes.concepts.record import Concepts
from probes.concepts.tail import activations, start_layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Refined:
    """Sub-concepts of one concept."""

    factorisation: Factorisation
    """Of the earlier site's rows, at the chosen pieces."""
    chosen: Bool[np.ndarray, " row"]
    """Which pieces hold the concept strongly."""
    codes: Float[np.ndarray, "row concept"]
    """Codes of all pieces in the sub-concepts."""
    table: pl.DataFrame
    """One row per sub-concept: `share` of the codes on the chosen pieces, and `follows`, the correlation of its code
    with the concept's code over all pieces."""


def refine(
    codes: Float[np.ndarray, " row"],
    earlier: Float[np.ndarray, "row d"],
    n_concepts: int = 5,
    *,
    top: float = 0.1,
    least: int = 20,
    method: Method = "semi_nmf",
    seed: int = 0,
    **options: Any,
) -> Refined:
    """Factor the pieces of one concept again, at an earlier site.

    Args:
        codes: how much of the concept each piece holds.
        earlier: what an earlier site holds for the same pieces, in the same order.
        n_concepts: how many parts.
        top: share of the pieces with the concept that count as strong (**X**).
        least: at least so many pieces.
        method, seed, options: see :func:`probes.concepts.factors.factorise`.

    Returns:
        Refined: parts, the largest share first.

    Raises:
        ShapeMismatch: not one row of the earlier site per code.
        BadData: too few pieces hold the concept.
        OutOfRange, NotFinite.

    Example:
        >>> rows = np.repeat(np.eye(4), 30, axis=0)
        >>> found = refine(rows[:, 0] + rows[:, 1], rows, 2, top=1.0)
        >>> int(found.chosen.sum()), found.factorisation.codes.shape
        (60, (60, 2))
    """
    codes, earlier = finite("the codes", np.asarray(codes, np.float64)), np.asarray(earlier)
    if codes.ndim != 1 or earlier.ndim != 2 or len(codes) != len(earlier):
        raise ShapeMismatch(
            f"codes [row] of one concept and rows [row d] of an earlier site for the same pieces are wanted, got "
            f"{list(codes.shape)} and {list(earlier.shape)}."
        )
    if not 0 < top <= 1:
        raise OutOfRange(f"top={top} is a share of the pieces: above 0, at most 1.")
    there = codes > 0
    needed = max(least, n_concepts)
    if there.sum() < needed:
        raise BadData(f"{int(there.sum())} pieces hold the concept: at least {needed} are needed to take it apart.")
    edge = np.quantile(codes[there], 1 - top)
    edge = min(edge, np.sort(codes)[-needed])
    chosen = there & (codes >= edge)
    fitted = factorise(earlier[chosen], method, n_concepts, seed=seed, **options)
    order = np.argsort(-np.abs(fitted.codes).sum(0), kind="stable")
    fitted = Factorisation(
        method=fitted.method,
        bank=fitted.bank[order],
        codes=fitted.codes[:, order],
        centre=fitted.centre,
        penalty=None if fitted.penalty is None else fitted.penalty[order],
        price=fitted.price,
        losses=fitted.losses,
    )
    everywhere = fitted.encode(earlier)
    amounts = np.abs(fitted.codes).sum(0)
    table = pl.DataFrame(
        {
            "part": [f"p{i}" for i in range(n_concepts)],
            "share": amounts / max(amounts.sum(), 1e-300),
            "follows": [_correlation(codes, column) for column in everywhere.T],
        }
    )
    return Refined(factorisation=fitted, chosen=chosen, codes=everywhere, table=table)


def refine_at(
    model: Any,
    images: Any,
    found: Concepts,
    concept: str,
    site: str,
    n_concepts: int = 5,
    *,
    batch_size: int = 64,
    **options: Any,
) -> Refined:
    """Take a concept of :func:`probes.concepts.craft.craft` apart at an earlier site, on the images it was measured on.

    Args:
        model: the same model.
        images: the `ImageSet` that `craft` was given, or any that holds the measured images.
        found: what `craft` returned, at a site whose pieces are patches.
        concept: its name in the table.
        site: an earlier `blocks.L.hook_resid_pre|post`.
        n_concepts: how many parts.
        batch_size: images per forward.
        options: for :func:`refine`.

    Returns:
        Refined; `codes` has one row per patch of the measured images, in their order.

    Raises:
        BadData: a site that is not earlier, pieces that are crops, or images that are not there.
        OutOfRange: no such concept.

    Example:
        >>> refine_at(model, images, found, "c0", "blocks.0.hook_resid_post").table                # doctest: +SKIP
    """
    layers = [start_layer(model, name) for name in (site, found.facts["site"])]
    if None in layers or layers[0] >= layers[1]:
        raise BadData(f"{site!r} is not an earlier site of patches than {found.facts['site']!r}, where the concept is.")
    maps = found.maps(concept)
    place = {name: i for i, name in enumerate(images.ids)}
    wanted = found.tables["images"]["image"].to_list()
    if missing := [name for name in wanted if name not in place]:
        raise BadData(f"{len(missing)} of the measured images are not among these, the first is {missing[0]!r}.")
    rows, *_ = activations(model, images[[place[name] for name in wanted]], site, batch_size=batch_size)
    return refine(maps.ravel(), rows.flatten(0, 1).double().numpy(), n_concepts, **options)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
