"""Do importances say what happens when concepts go or come? Deletion, insertion, mu-fidelity (methods2.md 17.4).

* **Deletion**: concepts are removed from the most important on; the sooner the answer falls, the better.
* **Insertion**: concepts join from the most important on; the sooner it rises, the better.
* **mu-fidelity**: over random sets of concepts, the correlation of the summed importances with what removing the set
  takes from the answer.

Curves are means over images with intervals, and their area is compared image by image with that of random orders: an
order that is no better than random is no explanation. For a tail that is linear in the codes, `u_i (v_i . w)` is the
best possible order and has mu-fidelity 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.record import finite
from mechvis.stats import bootstrap, paired_difference
from probes.concepts.game import Game
from probes.concepts.importance import Plugin, importance_in

COMPARED = ("grad_input", "ig", "occlusion", "shapley", "sobol", "tcav")


@dataclass(frozen=True, kw_only=True, eq=False)
class ConceptCurves:
    """What follows from taking and giving concepts, per image."""

    deletion: Float[np.ndarray, "image step"]
    """The answer after 0, 1, ... concepts are gone."""
    insertion: Float[np.ndarray, "image step"]
    """The answer after 0, 1, ... concepts have come."""
    random_deletion: Float[np.ndarray, "image step"]
    """Mean over random orders."""
    random_insertion: Float[np.ndarray, "image step"]
    """Likewise."""
    fidelity: Float[np.ndarray, " image"]
    """mu-fidelity; NaN where nothing changes."""
    table: pl.DataFrame
    """One row per measure: mean, interval, n, and the difference from random orders with its interval."""


def concept_curves(
    game: Game,
    importances: Float[np.ndarray, "image concept"],
    *,
    orders: int = 10,
    sets: int = 64,
    share: float = 0.2,
    seed: int = 0,
) -> ConceptCurves:
    """Measure importances against what the tail does (methods2.md 17.4; **A**, **K**).

    Args:
        game: from :func:`probes.concepts.game.game_of`.
        importances: of its concepts for its images.
        orders: random orders to compare with.
        sets: random sets for mu-fidelity.
        share: of the concepts in each set, at least one.
        seed: of both.

    Returns:
        ConceptCurves. Areas are means over the steps, in the unit of the tail.

    Raises:
        ShapeMismatch: importances of other images or concepts.
        NotFinite, OutOfRange.

    Example:
        >>> game = game_of(lambda u: u.sum(1), np.array([[1.0, 3.0]]), takes_images=False)         # doctest: +SKIP
        >>> concept_curves(game, np.array([[1.0, 3.0]])).deletion                                  # doctest: +SKIP
        array([[4., 1., 0.]])
    """
    n, k = game.n_images, game.n_concepts
    importances = finite("the importances", np.asarray(importances, np.float64))
    if importances.shape != (n, k):
        raise ShapeMismatch(f"importances [image concept] = [{n}, {k}] are wanted, got {list(importances.shape)}.")
    if orders < 1 or sets < 3 or not 0 < share < 1:
        raise OutOfRange(f"orders={orders} (at least 1), sets={sets} (at least 3), share={share} (between 0 and 1).")
    generator = np.random.default_rng(seed)
    order = np.argsort(-importances, axis=1, kind="stable")
    deletion, insertion = _path(game, order)
    drawn = [_path(game, np.stack([generator.permutation(k) for _ in range(n)])) for _ in range(orders)]
    random_deletion, random_insertion = (np.mean([pair[side] for pair in drawn], axis=0) for side in (0, 1))
    fidelity = _fidelity(game, importances, sets, max(1, round(share * k)), generator)
    rows = []
    for name, own, other in (("deletion", deletion, random_deletion), ("insertion", insertion, random_insertion)):
        rows.append(_row(name, own.mean(1), other.mean(1), seed))
    rows.append(_row("mu-fidelity", fidelity, np.zeros(n), seed))
    return ConceptCurves(
        deletion=deletion,
        insertion=insertion,
        random_deletion=random_deletion,
        random_insertion=random_insertion,
        fidelity=fidelity,
        table=pl.DataFrame(rows),
    )


def compare_importance(
    game: Game, methods: Sequence[str | Plugin] = COMPARED, *, seed: int = 0, **options: Any
) -> pl.DataFrame:
    """Importance methods side by side on the same tail: which of them says best what happens?

    Args:
        game: from :func:`probes.concepts.game.game_of`.
        methods: names, or functions of a game.
        seed: of random orders and sets, and of the methods.
        options: for :func:`concept_curves`.

    Returns:
        One row per method and measure, with intervals over images and the difference from random orders. The row of
        `random` holds importances drawn at random: the control.

    Example:
        >>> compare_importance(game_of(tail, codes))                                               # doctest: +SKIP
    """
    found = []
    for method in (*methods, "random"):
        if method == "random":
            values = np.random.default_rng(seed).normal(size=(game.n_images, game.n_concepts))
        else:
            values = importance_in(game, method, **({"seed": seed} if method in ("sobol", "shapley") else {}))
        name = method if isinstance(method, str) else getattr(method, "__name__", "given")
        table = concept_curves(game, values, seed=seed, **options).table
        found.append(table.select(pl.lit(name).alias("method"), *table.columns))
    return pl.concat(found)


def _path(game: Game, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers while concepts go in this order, and while they come in it."""
    n, k = order.shape
    place = np.argsort(order, axis=1)
    gone = (place[:, None] < np.arange(k + 1)[:, None]).astype(np.float64)  # [image step concept]
    images = torch.arange(n).repeat_interleave(k + 1)
    both = []
    for masks in (1 - gone, gone):
        flat = torch.from_numpy(masks.reshape(-1, k)).to(game.codes.dtype)
        both.append(game.values(flat, images).double().numpy().reshape(n, k + 1))
    return both[0], both[1]


def _fidelity(game: Game, importances: np.ndarray, sets: int, size: int, generator: np.random.Generator) -> np.ndarray:
    k = importances.shape[1]
    chosen = np.stack([np.isin(np.arange(k), generator.choice(k, size, replace=False)) for _ in range(sets)])
    masks = torch.from_numpy(1.0 - chosen).to(game.codes.dtype)
    answers = game.on_every_image(torch.cat([torch.ones(1, k).to(masks), masks]))
    lost, summed = answers[:, :1] - answers[:, 1:], importances @ chosen.T

    def centred(values: np.ndarray) -> np.ndarray:
        return values - values.mean(1, keepdims=True)

    lost, summed = centred(lost), centred(summed)
    scale = np.sqrt((lost**2).sum(1) * (summed**2).sum(1))
    flat = scale <= 1e-12 * np.maximum(1.0, np.abs(answers).max(1) ** 2)
    return np.where(flat, np.nan, (lost * summed).sum(1) / np.where(flat, 1.0, scale))


def _row(name: str, own: np.ndarray, other: np.ndarray, seed: int) -> dict:
    mean, more = bootstrap(own, seed=seed), paired_difference(own, other, seed=seed)
    return {
        "measure": name,
        "mean": mean.effect[0],
        "low": mean.low[0],
        "high": mean.high[0],
        "n": int(mean.n[0]),
        "over_random": more.effect[0],
        "over_random_low": more.low[0],
        "over_random_high": more.high[0],
        "p": more.p[0],
    }
