"""When a running prediction settles: the two definitions, and the slow twins that read like them (methods.md 3.1).

`predictions[image anchor]` are classes at anchors 0 to T. With a window of k,

    l*(k) = min { l in 0..T-k : prediction(l) = prediction(l+1) = ... = prediction(l+k) }, else T (fallback)      [N]

so k = 1 asks for two equal predictions in a row. Anchors T-k+1 to T-1 can never come out, and T only as the fallback:
the prediction was never stable, or still changed within the last k anchors. The fallback is therefore counted apart.

    settle = min { l : prediction(m) = prediction(T) for all m >= l }                                             [X]
    settle_conf(p) = the same, and the probability of that class is at least p at all m >= l; else none (-1)      [X]

`l*` asks for agreement with the neighbours, `settle` with the final answer. They differ on images whose prediction is
stable, and then changes.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch

NEVER = -1
"""Where `settle_conf` finds no layer."""


def decision_layer(predictions: Int[np.ndarray, "image anchor"], k: int = 2) -> Int[np.ndarray, " image"]:
    """`l*(k)` of every image; T where it falls back.

    Args:
        predictions: class at each anchor.
        k: how many anchors after `l` must agree with it.

    Raises:
        ShapeMismatch: not a table of at least two anchors.
        OutOfRange: k below 1 or not below the number of anchors.

    Example:
        >>> decision_layer(np.array([[0, 1, 1, 1], [0, 1, 0, 1]]), k=2).tolist()
        [1, 3]
    """
    found, first = _stable(predictions, k)
    return np.where(found, first, np.shape(predictions)[1] - 1)


def fell_back(predictions: Int[np.ndarray, "image anchor"], k: int = 2) -> Bool[np.ndarray, " image"]:
    """Images whose prediction is stable nowhere; their `l*` is T because it has to be something.

    Example:
        >>> fell_back(np.array([[0, 1, 1, 1], [0, 1, 0, 1]]), k=2).tolist()
        [False, True]
    """
    return ~_stable(predictions, k)[0]


def settle(predictions: Int[np.ndarray, "image anchor"]) -> Int[np.ndarray, " image"]:
    """The first anchor from which the prediction equals the final one.

    Example:
        >>> settle(np.array([[0, 1, 1, 1], [1, 1, 0, 1]])).tolist()
        [1, 3]
    """
    predictions = _table(predictions)
    return _since(predictions == predictions[:, -1:])


def settle_conf(
    predictions: Int[np.ndarray, "image anchor"], probability: Float[np.ndarray, "image anchor class"], p: float
) -> Int[np.ndarray, " image"]:
    """The first anchor from which the prediction equals the final one with at least some confidence.

    Args:
        predictions: class at each anchor, as positions in the last axis of `probability`.
        probability: of every class at each anchor.
        p: least probability of the final class.

    Returns:
        Anchors; -1 where the final class does not reach `p` at the last anchor itself.

    Raises:
        ShapeMismatch, OutOfRange, NotFinite.

    Example:
        >>> settle_conf(np.array([[1, 1]]), np.array([[[0.4, 0.6], [0.1, 0.9]]]), 0.8).tolist()
        [1]
    """
    predictions, probability = _table(predictions), np.asarray(probability)
    if probability.ndim != 3 or probability.shape[:2] != predictions.shape:
        raise ShapeMismatch(
            f"probabilities are [image anchor class] = {[*predictions.shape, 'class']}, got {list(probability.shape)}."
        )
    if not 0 <= p <= 1:
        raise OutOfRange(f"p={p}: a probability between 0 and 1.")
    if not np.isfinite(probability).all():
        raise NotFinite("the probabilities hold NaN or Inf.")
    final = predictions[:, -1]
    if final.min() < 0 or final.max() >= probability.shape[2]:
        raise OutOfRange(
            f"predictions are {int(final.min())} to {int(final.max())}, classes 0 to {probability.shape[2] - 1}."
        )
    sure = probability[np.arange(len(final)), :, final] >= p
    return _since((predictions == final[:, None]) & sure)


def decision_layer_plain(predictions: Int[np.ndarray, "image anchor"], k: int = 2) -> Int[np.ndarray, " image"]:
    """The twin of :func:`decision_layer`: the definition, image by image."""
    last, found = np.shape(predictions)[1] - 1, []
    for row in np.asarray(predictions):
        stable = [
            layer for layer in range(last - k + 1) if all(row[layer] == row[layer + step] for step in range(1, k + 1))
        ]
        found.append(min(stable, default=last))
    return np.array(found)


def settle_plain(predictions: Int[np.ndarray, "image anchor"]) -> Int[np.ndarray, " image"]:
    """The twin of :func:`settle`: from the last anchor backwards, image by image."""
    found = []
    for row in np.asarray(predictions):
        layer = len(row) - 1
        while layer > 0 and row[layer - 1] == row[-1]:
            layer -= 1
        found.append(layer)
    return np.array(found)


def _stable(predictions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether any window of `k + 1` equal predictions exists, and where the first one starts."""
    predictions = _table(predictions)
    anchors = predictions.shape[1]
    if not 1 <= k < anchors:
        raise OutOfRange(f"k={k}: a window of k + 1 predictions needs k of 1 to {anchors - 1} for {anchors} anchors.")
    windows = np.lib.stride_tricks.sliding_window_view(predictions, k + 1, axis=1)
    same = (windows == windows[..., :1]).all(-1)
    return same.any(1), same.argmax(1)


def _since(holds: np.ndarray) -> np.ndarray:
    """The first anchor from which something holds to the end; -1 where it does not hold at the end."""
    run = np.cumprod(holds[:, ::-1], axis=1).sum(1)
    return np.where(run > 0, holds.shape[1] - run, NEVER)


def _table(predictions: np.ndarray) -> np.ndarray:
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or predictions.shape[1] < 2 or not len(predictions):
        raise ShapeMismatch(
            f"predictions are [image anchor] with two anchors or more, got the shape {list(predictions.shape)}."
        )
    if predictions.dtype.kind not in "iub":
        if predictions.dtype.kind != "f" or (predictions != np.round(predictions)).any():
            raise BadData(f"predictions are class numbers, got {predictions.dtype} values that are none.")
        predictions = predictions.astype(np.int64)
    return predictions
