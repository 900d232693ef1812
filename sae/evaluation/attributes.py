"""Are attributes found as latents? Best F1 per value, and two ways in which a dictionary fails.

From methods2.md 21.1 step 3 ([A]; thresholds [X]):

* interpretability: per value of an attribute the latent with the best F1 (threshold from training rows, judged on
  others); the share of values with F1 above .8.
* *occlusion*: rows tell the value (a probe on them is right), but no latent does: a weaker attribute has lost its
  latents to a stronger one.
* *over-splitting*: many latents that each cover a part of one value only (recall below .3, precision above .9), and
  together nearly all of it.

How low is low: F1 is set against saying yes always, which scores 2p/(1+p) for a value of share p (.67 for one of two).
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import BadData, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.evaluation.detectors import Sorted, chance_f1, scores
from sae.evaluation.intervals import columns, ratio
from sae.evaluation.probing import _right
from sae.evaluation.supervised import Attributes

SMALL_RECALL, HIGH_PRECISION, UNION = 0.3, 0.9, 0.8
GOOD_PROBE, LOW_F1 = 0.9, 0.5
"""Balanced accuracy of a probe that knows a value; F1, from chance (0) to perfect (1), below which no latent does."""

WORDS = {
    "attribute": "the attribute",
    "value": "one of its values",
    "latent": "the latent with the best F1 on training rows",
    "f1": "its F1 on other rows",
    "precision": "share of the rows it says yes to that have the value",
    "recall": "share of the rows with the value that it says yes to",
    "chance": "F1 of saying yes always",
    "probe": "balanced accuracy of logistic regression on the rows themselves, with its interval",
    "parts": "latents that each cover a small part of the value, and little else",
    "union": "share of the rows with the value that these cover together",
    "occluded": "the rows tell the value, no latent does",
    "split": "many latents share the value",
    "rows": "other rows",
}


class AttributeLatents(Record):
    """Best latent of each value; facts hold shares over values."""

    KIND = "attribute_latents"

    @property
    def found(self) -> float:
        """Share of values with a latent of F1 above .8."""
        return self.facts["found"]


def attribute_latents(
    train: Float[np.ndarray, "row latent"],
    train_attributes: Attributes,
    test: Float[np.ndarray, "other_row latent"],
    test_attributes: Attributes,
    *,
    rows: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> AttributeLatents:
    """How attributes show in latents.

    Args:
        train: codes of training rows.
        train_attributes: their values by attribute.
        test: codes of other rows.
        test_attributes: their values.
        rows: the activations of both, for the probe; without them occlusion is not told.
        seed: of the resamples.

    Raises:
        BadData: other attributes, or none.
        ShapeMismatch: arrays that do not belong together.
    """
    if not train_attributes or set(train_attributes) != set(test_attributes):
        raise BadData("the same attributes, at least one, for training and other rows.")
    test = np.asarray(test, dtype=np.float64)
    if test.ndim != 2 or np.shape(train)[1:] != test.shape[1:]:
        raise ShapeMismatch(f"codes [row latent] of the same latents; got {list(np.shape(train))}, {list(test.shape)}.")
    ordered, found = Sorted(train), []
    for name, column in train_attributes.items():
        column, judged = np.asarray(column), np.asarray(test_attributes[name])
        for value in np.unique(column):
            known, truth = column == value, judged == value
            if not truth.any() or truth.all():
                raise BadData(f"no other row, or every one, has {name}={value}: nothing can be judged.")
            best = ordered.detectors(known)
            latent = int(best.f1.argmax())
            told = scores(test[:, latent] > best.threshold[latent], truth)
            # The parts of a value that was split: latents as they fire, without a threshold.
            fires = test > 0
            hits = (fires & truth[:, None]).sum(0)
            precision = hits / np.maximum(fires.sum(0), 1)
            recall = hits / truth.sum()
            parts = (precision > HIGH_PRECISION) & (recall < SMALL_RECALL) & (hits > 0)
            union = float((fires[:, parts].any(1) & truth).sum() / truth.sum())
            chance = chance_f1(truth)
            probe = (float("nan"),) * 3
            if rows is not None:
                right = _right(np.asarray(rows[0], float), known, np.asarray(rows[1], float), truth)
                # Balanced: every row weighs one over the number of rows on its side.
                weight = np.where(truth, 1 / truth.sum(), 1 / (~truth).sum())
                probe = ratio(right * weight, weight, seed=seed)
            low = (told["f1"] - chance) / (1 - chance) < LOW_F1
            split = bool(low and parts.sum() > 1 and union >= UNION)
            occluded = bool(rows is not None and probe[0] >= GOOD_PROBE and low and not split)
            found.append(
                {"attribute": name, "value": str(value), "latent": latent, **told, "chance": chance,
                 **columns("probe", probe), "parts": int(parts.sum()), "union": union, "occluded": occluded,
                 "split": split, "rows": len(truth)}
            )  # fmt: skip
    table = pl.DataFrame(found)
    facts = {
        "found": float((table["f1"] > 0.8).mean()),
        "occluded": float(table["occluded"].mean()),
        "split": float(table["split"].mean()),
    }
    told: tuple[str, ...] = ("Latents and thresholds were chosen on training rows, and judged on the others.",)
    if rows is None:
        told = (*told, "Without rows= there is no probe, so occlusion is not told from an attribute that is not there.")
    return AttributeLatents(
        title=f"Latents of {table.height} values of {len(train_attributes)} attributes",
        tables={"values": table},
        facts=facts,
        words=WORDS,
        caveats=told,
        provenance=provenance(seed=seed),
    )


def explained_share(dictionary: Any, rows: Any, labelled: np.ndarray) -> float:
    """Share of what a dictionary writes that comes from latents with a label (the sum of their `exchange.weights`).

    Args:
        dictionary: a `sae.Dictionary`.
        rows: activations `[row d]`.
        labelled: which latents have a label, bool `[latent]`.

    Raises:
        ShapeMismatch: another number of latents.
    """
    from sae.evaluation.exchange import weights

    w = weights(dictionary, rows)
    if len(labelled) != w.shape[1]:
        raise ShapeMismatch(f"labels of {len(labelled)} latents, the dictionary has {w.shape[1]}.")
    return float(w[:, np.asarray(labelled, bool)].sum(1).mean())
