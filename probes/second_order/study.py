"""What the neurons of a model write through later heads, in words: sizes, directions, top images, a row per neuron.

1. Half of the images give each neuron's mean effect and direction (`rank_one`), the other half say how much of the
   effect lies along that direction there.
2. With words, each direction is written as a sparse sum of their embeddings (`texts`); random directions written the
   same way say how good a fit means nothing.
3. Summed over a layer, effects say which layers act through later heads at all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from mechvis.errors import BadData, RefusedMethod
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from probes.second_order.effects import BATCH, Coefficients, coefficients, neuron_groups
from probes.second_order.rank_one import TOP, RankOne, explained_elsewhere, rank_one
from probes.second_order.readout import Of
from probes.second_order.texts import in_words

RANDOM = 200
"""Random directions for the control of the fit."""


class SecondOrderStudy(Record):
    """Second-order effects of the neurons of some layers; `arrays` has `direction`, `mean` and `top` (image places)."""

    KIND = "second_order"

    def direction(self, unit: str) -> np.ndarray:
        """r_n of a neuron by name, e.g. `L1N37`.

        Raises:
            BadData: no such neuron.
        """
        row = self.table["unit"].to_list()
        if unit not in row:
            raise BadData(f"no neuron {unit!r} in this study; its rows are named like {row[0]}.")
        return self.arrays["direction"][row.index(unit)]

    def strongest(self, n: int = 20) -> pl.DataFrame:
        """The neurons of largest effect."""
        return self.table.sort("size", descending=True).head(n)


def second_order(
    model: Any,
    images: Any,
    *,
    layers: Sequence[int] | None = None,
    words: Sequence[str] = (),
    texts: Any = None,
    atoms: int = 8,
    top: int = TOP,
    of: Of | None = None,
    budget: str | int | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    progress: bool = True,
) -> SecondOrderStudy:
    """Second-order effects of all neurons of some layers, with words if there are any.

    Args:
        model: a wrapped image tower, or a `HookedCLIP` (its image tower, in the joint space).
        images: an `ImageSet` or pixels; half for directions, half to judge them.
        layers: default: all but the last, whose neurons have no later head.
        words: texts to write directions in; needs a `HookedCLIP`, or `texts`.
        texts: embeddings of the words `[word d_out]`; None: the text tower of a `HookedCLIP`.
        atoms: words per direction. (**C**: 128 of 30,000 words; the default here suits lists of some hundred.)
        top: images that a direction is fitted to (**C**: 100).
        of: what effects are on; default `embedding` for CLIP, else `output`.
        budget: memory for the effects of one group of neurons; a pass over the images for each group.
        batch_size: images per forward pass.
        seed: of the halves, the random directions and the bootstrap.
        progress: show progress bars.

    Returns:
        SecondOrderStudy: the first table has one row per neuron, by layer and neuron; the second one per layer.

    Raises:
        RefusedMethod: words without embeddings, or a read-out that is not linear.
        BadData: fewer than four images, no layer with a later one.

    Example:
        >>> study = second_order(clip, images, words=["circle", "red", "striped"])      # doctest: +SKIP
        >>> study.strongest(5)                                                          # doctest: +SKIP
    """
    tower = getattr(model, "vision", model)
    of = of or ("embedding" if tower is not model else "output")
    if len(words) and texts is None:
        if tower is model:
            raise RefusedMethod("words need embeddings: pass a HookedCLIP model, or texts= [word d_out].")
        texts = model.encode_text(list(words)).double().cpu().numpy()
    n_layers = len(tower.parts.blocks)
    layers = tuple(range(n_layers - 1)) if layers is None else tuple(layer % n_layers for layer in layers)
    if not [layer for layer in layers if layer < n_layers - 1]:
        raise BadData("no layer with a later one is left: the last block's neurons have no second-order effect.")
    if len(images) < 4:
        raise BadData(f"{len(images)} images: directions need some, and judging them needs others.")
    order = np.random.default_rng(seed).permutation(len(images))
    halves = [np.sort(order[: len(images) // 2]), np.sort(order[len(images) // 2 :])]
    found: list[pl.DataFrame] = []
    fitted: list[RankOne] = []
    whole, of_layer = [], []
    for layer in layers:
        total, mean_sizes = 0.0, []
        for neurons in neuron_groups(tower, layer, len(images), budget):
            settings = {"neurons": neurons, "of": of, "batch_size": batch_size, "progress": progress}
            both = coefficients(tower, images, layer, **settings)
            seen, held = (_part(both, half) for half in halves)
            one = rank_one(seen, top=top)
            fitted.append(one)
            sizes = held.sizes(one.alpha_mean)
            total = total + held.summed()
            mean_sizes.append(sizes.mean(0))
            found.append(_rows(both, held, one, sizes, seed))
        of_layer.append(np.linalg.norm(total - total.mean(0), axis=1))
        whole.append(np.concatenate(mean_sizes))
    table = pl.concat(found).with_columns(pl.col(pl.Float64).fill_nan(None))
    directions = np.concatenate([one.direction for one in fitted])
    facts: dict[str, Any] = {"of": both.of, "unit_length": both.unit, "top": min(top, len(halves[0]))}
    if len(words):
        written = in_words(directions, texts, words, atoms=atoms)
        random = np.random.default_rng(seed + 1).standard_normal((RANDOM, directions.shape[1]))
        chance = [one.cosine for one in in_words(random, texts, words, atoms=atoms)]
        facts |= {"atoms": atoms, "words": len(words), "random_cosine": float(np.mean(chance))}
        facts |= {"random_cosine_95": float(np.quantile(chance, 0.95))}
        table = table.with_columns(
            pl.Series("words", [", ".join(one.top()) for one in written]),
            pl.Series("cosine", [one.cosine for one in written]),
        )
    spread = bootstrap(np.array(of_layer), seed=seed)
    by_layer = pl.DataFrame(
        {"layer": layers, "summed": spread.effect, "low": spread.low, "high": spread.high, "n": spread.n}
        | {"mean_size": [float(size.mean()) for size in whole], "largest_size": [float(size.max()) for size in whole]}
    )
    return SecondOrderStudy(
        title=f"Second-order effects of {table.height} neurons",
        tables={"neurons": table, "layers": by_layer},
        arrays={
            "direction": directions.astype(np.float32),
            "mean": np.concatenate([one.mean for one in fitted]).astype(np.float32),
            "top": np.concatenate([halves[0][one.images[:, :16]] for one in fitted]).astype(np.int64),
        },
        facts=facts,
        words={
            "size": "mean length of the effect's deviation from its mean, images that the direction was not fitted to",
            "explained": "share of the squared deviations of the top images that lies along the direction",
            "explained_held_out": "the same on the other half of the images, all of them",
            "positive": "share of the top images that project positively on the direction",
            "words": "words of largest weight in the direction's sparse sum; - speaks against",
            "cosine": "of that sum with the direction; random_cosine_95 is what 95 % of random directions stay below",
            "summed": "mean length of the deviation of the sum over the layer's neurons",
        },
        caveats=(
            "Effects through later attention heads alone, with patterns and norm scales frozen; what later MLPs make "
            "of a neuron, and its direct effect, are not in it.",
            "Words are what a direction lies near to. A cosine at or below that of random directions says nothing.",
        ),
        provenance=provenance(
            model=tower, images=images if hasattr(images, "ids") else None, seed=seed, settings={"layers": list(layers)}
        ),
    )


def _rows(both: Coefficients, held: Coefficients, one: RankOne, sizes: np.ndarray, seed: int) -> pl.DataFrame:
    """The table's rows of some neurons."""
    sure = bootstrap(sizes.T, seed=seed)
    return pl.DataFrame(
        {
            "unit": both.names,
            "layer": np.full(len(one.neurons), one.layer),
            "neuron": one.neurons,
            "size": sure.effect,
            "low": sure.low,
            "high": sure.high,
            "n": sure.n,
            "explained": one.explained,
            "explained_held_out": explained_elsewhere(held, one),
            "positive": one.positive,
        }
    )


def _part(found: Coefficients, images: np.ndarray) -> Coefficients:
    return replace(found, alpha=found.alpha[images], ids=tuple(found.ids[i] for i in images))
