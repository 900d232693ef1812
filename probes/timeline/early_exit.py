"""Stop when the prediction is stable: accuracy against compute (methods.md 3.1, "early-exit simulation", **N**).

An image leaves at the first anchor where the window rule holds. The rule looks k anchors ahead, so what was computed is
anchor `l* + k`, not `l*` (**X**; easy to get wrong). With a least confidence p, the window must also end with the
probe's probability of the class at least p. Images that never leave run to the end and take the last anchor's answer.

Compute is what lies below an anchor, plus all probes up to it: in FLOPs counted while one image runs, or in measured
seconds per image.
"""

import time
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.stats import RESAMPLES, bootstrap, paired_difference

CONFIDENCES = (0.0, 0.5, 0.7, 0.9, 0.95)


def exits(
    predictions: Int[np.ndarray, "image anchor"],
    confidence: Float[np.ndarray, "image anchor"],
    *,
    k: int = 2,
    p: float = 0.0,
) -> tuple[Int[np.ndarray, " image"], Int[np.ndarray, " image"]]:
    """Where each image leaves (anchor that was computed), and its answer.

    Args:
        predictions: class at each anchor.
        confidence: probability of that class.
        k: window.
        p: least confidence at the anchor where it leaves.

    Returns:
        The anchor up to which was computed (T for those that never leave), and the class.

    Raises:
        ShapeMismatch, OutOfRange.

    Example:
        >>> exits(np.array([[0, 1, 1, 1, 0]]), np.ones((1, 5)), k=1)[0].tolist()
        [2]
    """
    predictions, confidence = np.asarray(predictions), np.asarray(confidence)
    if predictions.ndim != 2 or confidence.shape != predictions.shape:
        raise ShapeMismatch(
            f"predictions {list(predictions.shape)} and confidence {list(confidence.shape)} are [image anchor]."
        )
    last = predictions.shape[1] - 1
    if not 1 <= k <= last or not 0 <= p <= 1:
        raise OutOfRange(f"k={k}, p={p}: k of 1 to {last}, p between 0 and 1.")
    windows = np.lib.stride_tricks.sliding_window_view(predictions, k + 1, axis=1)
    leaves = (windows == windows[..., :1]).all(-1) & (confidence[:, k:] >= p)
    where = np.where(leaves.any(1), leaves.argmax(1) + k, last)
    return where, predictions[np.arange(len(predictions)), where]


def exits_plain(predictions: np.ndarray, confidence: np.ndarray, *, k: int = 2, p: float = 0.0):
    """The twin of :func:`exits`: anchor by anchor, as a running program would."""
    where, answers = [], []
    for row, sure in zip(predictions, confidence, strict=True):
        run = 0
        for anchor in range(len(row)):
            run = run + 1 if anchor and row[anchor] == row[anchor - 1] else 0
            if run >= k and sure[anchor] >= p:
                break
        where.append(anchor)
        answers.append(row[anchor])
    return np.array(where), np.array(answers)


def exit_curve(
    predictions: Int[np.ndarray, "image anchor"],
    confidence: Float[np.ndarray, "image anchor"],
    labels: Int[np.ndarray, " image"],
    cost: Float[np.ndarray, " anchor"],
    *,
    k: int = 2,
    confidences: tuple[float, ...] = CONFIDENCES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Accuracy and cost of every rule, beside full depth.

    Args:
        predictions: class at each anchor.
        confidence: probability of that class.
        labels: true classes.
        cost: of computing up to each anchor (rising).
        k: window.
        confidences: least confidences to try; 0 is stability alone.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One line per rule: accuracy, `loss` (full depth - rule, paired), mean cost (share of full depth), mean anchor.
    """
    cost = np.asarray(cost, float)
    if cost.shape != predictions.shape[1:] or (np.diff(cost) < 0).any() or not cost[-1] > 0:
        raise ShapeMismatch(
            f"cost is one rising number per anchor ({predictions.shape[1]}), got {np.round(cost, 3).tolist()}."
        )
    more = {"resamples": resamples, "seed": seed}
    full = (predictions[:, -1] == labels).astype(float)
    rows = []
    for p in (*confidences, None):
        if p is None:
            where, correct, rule = np.full(len(labels), len(cost) - 1), full, "full depth"
        else:
            where, answer = exits(predictions, confidence, k=k, p=p)
            correct, rule = (answer == labels).astype(float), f"stable for {k}" + (f", confidence {p:g}" if p else "")
        found = bootstrap(np.stack([correct, cost[where] / cost[-1], where.astype(float)]), **more)
        gap = paired_difference(full, correct, **more)
        names = ("accuracy", "cost", "anchor")
        line = {"rule": rule, "k": k, "p": p}
        for at, name in enumerate(names):
            line |= {
                name: float(found.effect[at]),
                f"{name}_low": float(found.low[at]),
                f"{name}_high": float(found.high[at]),
            }
        line |= {"loss": float(gap.effect[0]), "loss_low": float(gap.low[0]), "loss_high": float(gap.high[0])}
        rows.append(line | {"left_early": float((where < len(cost) - 1).mean()), "n": len(labels)})
    return rows


def anchor_cost(
    model: Any,
    image: torch.Tensor,
    sites: list[str],
    *,
    classes: int,
    width: int,
    unit: Literal["flops", "seconds"] = "flops",
) -> Float[np.ndarray, " anchor"]:
    """What it costs to compute up to each anchor, probes included.

    Args:
        model: a wrapped model.
        image: pixels `[1 channel height width]`.
        sites: the anchors, in the order of the forward pass.
        classes: of a probe.
        width: of a probe's input.
        unit: `flops` (counted) or `seconds` (fastest of five runs of this one image).
    """
    found = []
    for site in sites:
        if unit == "seconds":
            spans = []
            for _ in range(5):
                start = time.perf_counter()
                model.run(image, capture=[site], stop_when_captured=True)
                spans.append(time.perf_counter() - start)
            found.append(min(spans))
        else:
            from torch.utils.flop_counter import FlopCounterMode

            # Fused attention is not counted on every device; asked for its pattern, the model computes it openly.
            before = model.graph.names[: model.graph.names.index(site)]
            asked = [site, *(name for name in before if name.endswith("attn.hook_pattern"))]
            with FlopCounterMode(display=False) as counter:
                model.run(image, capture=asked, stop_when_captured=True)
            found.append(counter.get_total_flops())
    cost = np.maximum.accumulate(np.array(found, float))
    return cost + (2.0 * classes * width * np.arange(1, len(cost) + 1) if unit == "flops" else 0.0)
