"""Directions that need no interchange training: what DAS must be compared with (methods2.md 16.2, step 5).

All are computed from training activations alone, and come as orthonormal rows, the most important first:

* `mean_difference`: principal directions of the class means around their mean; at most (values - 1) of them;
* `pca`: directions of largest variance, whatever they mean;
* `probe`: principal directions of the weights of a linear probe (scikit-learn's logistic regression) of the variable;
* `random`: a random subspace.

If one of these reaches what DAS reaches, nothing had to be learnt through the model's answers.
"""

import random
import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.subspace.interchange import Rows, orthonormal
from mechvis.errors import BadData, OutOfRange

BASELINES = ("mean difference", "probe", "PCA", "random")

H = Float[Tensor, "image width"]
Values = Int[Tensor, " image"]


def mean_difference_rows(h: H, values: Values, k: int) -> Rows:
    """Directions in which the class means differ.

    Args:
        h: activations.
        values: value of the variable per image.
        k: how many; fewer come back if the means span fewer.

    Raises:
        BadData: one value only.
        OutOfRange: k below 1 or above the width.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> mean_difference_rows(h, torch.tensor([0, 1]), 1).abs()
        tensor([[1., 0.]])
    """
    _check(h, k)
    return orthonormal(mean_differences(h, values))[:k]


def mean_differences(h: H, values: Values) -> Float[Tensor, "value width"]:
    """Class means minus the mean of the class means.

    Raises:
        BadData: one value only.
    """
    present = values.unique()
    if len(present) < 2:
        raise BadData(f"differences of class means need two values, there is {present.tolist()}.")
    means = torch.stack([h[values == value].double().mean(0) for value in present])
    return (means - means.mean(0)).to(h.dtype)


def pca_rows(h: H, k: int) -> Rows:
    """Directions of largest variance.

    Raises:
        OutOfRange: k below 1 or above the width.
    """
    _check(h, k)
    wide = h.double()
    _, vectors = torch.linalg.eigh(torch.cov(wide.T).reshape(h.shape[1], h.shape[1]))
    return vectors.T.flip(0)[:k].to(h.dtype).contiguous()


def probe_rows(h: H, values: Values, k: int, *, inverse_penalty: float = 1.0) -> Rows:
    """Directions that a linear probe of the variable uses.

    Args:
        h: activations.
        values: value of the variable per image.
        k: how many; fewer come back if the probe uses fewer.
        inverse_penalty: scikit-learn's `C`, on activations scaled to a mean variance of one.

    Raises:
        BadData: one value only.
        OutOfRange: k below 1 or above the width.
    """
    LogisticRegression, ConvergenceWarning = _scikit_learn()
    _check(h, k)
    if len(values.unique()) < 2:
        raise BadData(f"a probe needs two values, there is {values.unique().tolist()}.")
    wide = h.double().cpu()
    centred = wide - wide.mean(0)
    # One factor for all coordinates: scaling each by its own would turn the directions.
    centred = centred / centred.square().mean().sqrt().clamp(min=1e-30)
    with warnings.catch_warnings():
        # Where the classes are separable the weights grow for ever; their directions have settled long before.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=inverse_penalty, max_iter=500).fit(centred.numpy(), values.cpu().numpy())
    weights = torch.from_numpy(np.ascontiguousarray(probe.coef_))
    if len(weights) > 1:
        weights = weights - weights.mean(0)
    return orthonormal(weights)[:k].to(h.device, h.dtype)


def _scikit_learn() -> tuple:
    """The probe and its warning; the first import of their packages draws a random number, which is given back."""
    state = random.getstate()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    random.setstate(state)
    return LogisticRegression, ConvergenceWarning


def random_rows(width: int, k: int, seed: int, *, like: Tensor) -> Rows:
    """A random subspace.

    Args:
        width: of the activations.
        k: how many rows.
        seed: fixes them.
        like: a tensor of the type and device to use.

    Raises:
        OutOfRange: k below 1 or above the width.
    """
    if not 1 <= k <= width:
        raise OutOfRange(f"k={k} rows of width {width}.")
    drawn = np.random.default_rng([seed, k, width, 7]).standard_normal((width, k))
    return torch.linalg.qr(torch.from_numpy(drawn)).Q.T.to(like.device, like.dtype).contiguous()


def baseline_rows(name: str, h: H, values: Values, k: int, seed: int) -> Rows:
    """Rows of one of `BASELINES`."""
    match name:
        case "mean difference":
            return mean_difference_rows(h, values, k)
        case "probe":
            return probe_rows(h, values, k)
        case "PCA":
            return pca_rows(h, k)
    return random_rows(h.shape[1], k, seed, like=h)


def _check(h: H, k: int) -> None:
    if not 1 <= k <= h.shape[1]:
        raise OutOfRange(f"k={k} directions of activations of width {h.shape[1]}.")
