"""Can a neuron's second-order effect be left out wherever it is small?

"Each neuron matters for under 2 % of the images" is partly built into how that is counted (the threshold is the 100th
largest of some 5,000). What is an empirical claim is that the other 98 % can be *replaced by the mean* and accuracy
hardly changes (methods.md 2.4). So, over all neurons of some layers together:

1. Reference images give b_n and, per neuron, the size |phi_n - b_n| that a `share` of them exceeds.
2. On other images, effects below that size are replaced by b_n, the rest is kept. Logits follow exactly, without a
   forward pass: they are linear in the effects, with patterns and scales as they are.
3. Beside it: keep a random choice of equal share (the control that must lose more, if the large ones carry the
   effect), keep nothing, replace only the large ones, and rank-one approximations of all.

Later heads and MLPs do not react to these replacements: it is the second-order effect that is ablated, not the neuron.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from mechvis.data.images import refuse_overlap
from mechvis.errors import BadData, OutOfRange, RefusedMethod
from mechvis.labels import with_model_classes
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap, paired_difference
from probes.second_order.effects import BATCH, coefficients, neuron_groups
from probes.second_order.rank_one import TOP, rank_one

SHARE = 0.02
EDITS = {
    "nothing": "nothing is replaced",
    "small": "effects below the threshold are replaced by their mean",
    "random": "effects are replaced by their mean, but for a random choice of equal share",
    "large": "effects above the threshold are replaced by their mean",
    "all": "all effects are replaced by their mean",
    "rank one": "all effects are replaced by their rank-one approximation",
}


class AblationClaim(Record):
    """Accuracy with second-order effects replaced; `EDITS` says what each row is."""

    KIND = "second_order_claim"

    @property
    def large_ones_carry(self) -> bool:
        """Replacing the small effects costs less of the label's log-odds than replacing as many at random, beyond doubt
        (95 % interval of the paired difference)."""
        return bool(self.facts["small_minus_random_low"] > 0)

    def verdict(self, tolerance: float = 0.02) -> str:
        """Does accuracy stay when the small effects are replaced? `holds`, `fails`, `undecided`, or `empty` where
        replacing *all* effects costs no accuracy either, so that nothing was tested.

        Args:
            tolerance: loss of accuracy that counts as hardly any (**X**).
        """
        small, everything = self.pick(replaced="small"), self.pick(replaced="all")
        if everything["change_low"] > -tolerance:
            return "empty"
        if small["change_low"] > -tolerance:
            return "holds"
        return "fails" if small["change_high"] < -tolerance else "undecided"


def ablation_claim(
    model: Any,
    reference: Any,
    images: Any,
    *,
    layers: Sequence[int] | None = None,
    share: float = SHARE,
    top: int = TOP,
    draws: int = 5,
    budget: str | int | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    allow_overlap: bool = False,
    progress: bool = True,
) -> AblationClaim:
    """Replace small second-order effects by their mean and see what accuracy does.

    Args:
        model: a wrapped classifier (for CLIP: `clip.classifier(names)`).
        reference: images that give means, thresholds and directions.
        images: labelled images to judge on; none of the reference's.
        layers: whose neurons; default: all but the last (which have no second-order effect).
        share: share of the reference images whose effect counts as large, per neuron (0.02 in the paper, by its
            construction).
        top: images that rank-one directions are fitted to.
        draws: random choices for the control.
        budget: memory for the effects of one group of neurons.
        batch_size: images per forward pass.
        seed: of random choices and bootstrap.
        allow_overlap: accept shared images.
        progress: show progress bars.

    Returns:
        AblationClaim: one row per edit: accuracy, its change against the untouched model (paired, 95 % interval),
        agreement with the untouched prediction, share of effects kept, n.

    Raises:
        RefusedMethod: no head, or a read-out that is not linear.
        SplitOverlap: reference and evaluation share images.
        BadData: no labels, no layer with a later one.
        OutOfRange: a share outside (0, 1).

    Example:
        >>> ablation_claim(clip.classifier(names), some, others).pick(replaced="small")     # doctest: +SKIP
    """
    if model.parts.head is None:
        raise RefusedMethod(
            "the claim is about accuracy, and this model has no head. For CLIP: clip.classifier(names)."
        )
    if not 0 < share < 1:
        raise OutOfRange(f"share={share}: give a share of the images between 0 and 1, e.g. 0.02.")
    if not allow_overlap:
        refuse_overlap(reference, images, what="reference and evaluation images")
    images = with_model_classes(images, model)
    labels = images.label_tensor.numpy()
    last = len(model.parts.blocks) - 1
    chosen = tuple(range(last)) if layers is None else tuple(layer % (last + 1) for layer in layers)
    if not [layer for layer in chosen if layer < last]:
        raise BadData("no layer with a later one is left: the last block's neurons have no second-order effect.")
    clean = _logits(model, images, batch_size)
    generator = np.random.default_rng(seed)
    change = {name: np.zeros_like(clean) for name in EDITS} | {
        f"random {i}": np.zeros_like(clean) for i in range(draws)
    }
    kept, total = 0, 0
    for layer in chosen:
        for neurons in neuron_groups(model, layer, len(reference) + len(images), budget):
            settings = {"neurons": neurons, "of": "logits", "batch_size": batch_size, "progress": progress}
            seen, judged = (coefficients(model, which, layer, **settings) for which in (reference, images))
            if not len(seen.terms):
                continue
            fitted = rank_one(seen, top=top)
            limit = np.quantile(seen.sizes(), 1 - share, axis=0)
            large = judged.sizes(fitted.alpha_mean) >= limit
            away = judged.alpha - fitted.alpha_mean
            vectors = judged.vectors.astype(np.float64)

            def written(where: np.ndarray, away: np.ndarray = away, vectors: np.ndarray = vectors) -> np.ndarray:
                return np.einsum("ikn,knd->id", away * where[:, None, :], vectors, optimize=True)

            everything = written(np.ones_like(large))
            kept, total = kept + int(large.sum()), total + large.size
            change["large"] += written(large)
            change["small"] += written(~large)
            change["all"] += everything
            along = np.einsum("knd,nd->kn", vectors, fitted.direction)
            projected = np.einsum("ikn,kn->in", away, along)
            change["rank one"] += everything - projected @ fitted.direction
            for draw in range(draws):
                # As many are kept of each neuron as above, on other images.
                change[f"random {draw}"] += written(~generator.permuted(large, axis=0))
    logits = {name: clean - shift for name, shift in change.items()}
    return _record(model, images, labels, logits, chosen, share, kept / total, draws, seed, reference)


def _record(
    model: Any,
    images: Any,
    labels: np.ndarray,
    logits: dict[str, np.ndarray],
    layers: tuple[int, ...],
    share: float,
    kept: float,
    draws: int,
    seed: int,
    reference: Any,
) -> AblationClaim:
    """Accuracies, agreements and margins from the logits of each edit; the random draws become one row."""
    clean = logits["nothing"]

    def per_image(name: str, measure: Any) -> np.ndarray:
        if name == "random":
            return np.mean([measure(logits[f"random {i}"]) for i in range(draws)], axis=0)
        return measure(logits[name])

    def correct(x: np.ndarray) -> np.ndarray:
        return (x.argmax(1) == labels).astype(np.float64)

    def same(x: np.ndarray) -> np.ndarray:
        return (x.argmax(1) == clean.argmax(1)).astype(np.float64)

    def margin(x: np.ndarray) -> np.ndarray:
        """Log-odds of the label."""
        x = x - x.max(1, keepdims=True)
        own = x[np.arange(len(x)), labels]
        others = np.where(np.arange(x.shape[1]) == labels[:, None], -np.inf, x)
        return own - np.log(np.exp(others).sum(1))

    share_kept = {"nothing": 1.0, "small": kept, "random": kept, "large": 1 - kept, "all": 0.0, "rank one": 0.0}
    rows = []
    for name in EDITS:
        accuracy = bootstrap(per_image(name, correct), seed=seed)
        moved = paired_difference(per_image(name, correct), correct(clean), seed=seed)
        log_odds = paired_difference(per_image(name, margin), margin(clean), seed=seed)
        rows.append(
            {"replaced": name, "kept": share_kept[name]}
            | {"accuracy": accuracy.effect[0], "low": accuracy.low[0], "high": accuracy.high[0]}
            | {"change": moved.effect[0], "change_low": moved.low[0], "change_high": moved.high[0]}
            | {
                "log_odds_change": log_odds.effect[0],
                "log_odds_low": log_odds.low[0],
                "log_odds_high": log_odds.high[0],
            }
            | {"same_prediction": float(per_image(name, same).mean()), "n": len(labels)}
        )
    against = paired_difference(per_image("small", margin), per_image("random", margin), seed=seed)
    return AblationClaim(
        title=f"Second-order effects replaced by their mean, layers {', '.join(map(str, layers))}",
        tables={"edits": pl.DataFrame(rows)},
        facts={
            "share": share,
            "kept": kept,
            "layers": list(layers),
            "draws": draws,
            "small_minus_random": float(against.effect[0]),
            "small_minus_random_low": float(against.low[0]),
            "small_minus_random_high": float(against.high[0]),
        },
        words={
            "replaced": "; ".join(f"{name}: {what}" for name, what in EDITS.items()),
            "kept": "share of (neuron, image) pairs whose effect stays as it is",
            "change": "accuracy minus that of the untouched model, paired over images, 95 % interval",
            "log_odds_change": "the same for the log-odds of the label",
            "same_prediction": "share of images with the untouched model's prediction",
            "small_minus_random": "log-odds of the label with the small effects replaced, minus with random ones",
        },
        caveats=(
            "Second-order effects alone are replaced: direct effects of the neurons, and what later MLPs make of them, "
            "stay.",
            f"The thresholds are the {1 - share:.0%} quantiles on other images, so about {share:.0%} being large is "
            "built in; what is measured is whether the rest can go.",
        ),
        provenance=provenance(model=model, images=images, seed=seed, reference=getattr(reference, "fingerprint", "")),
    )


def _logits(model: Any, images: Any, batch_size: int) -> np.ndarray:
    found = [model.run(images[i : i + batch_size]).logits.double().cpu() for i in range(0, len(images), batch_size)]
    return np.concatenate([part.numpy() for part in found])
