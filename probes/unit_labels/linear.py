"""Linear Explanations: a unit as a short weighted sum of concepts, over the whole range of its activations.

A unit's top images show one end of it. Its correlation with a weighted sum of concepts is about all images (**C**):

1. Concepts standardised, the unit standardised (**X**, so that one penalty fits all units).
2. Elastic net with lam = 0.05 and alpha = 0.99 (scikit-learn's solver in place of GLM-SAGA: the objective is convex,
   the minimum the same).
3. Greedy choice among the 10 largest weights: add the concept that raises the correlation on *other* images most, with
   all weights fitted again, until that gains less than 0.02, at most 10 concepts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.record import finite

LAM, L1_RATIO, CANDIDATES, GAIN, MOST = 0.05, 0.99, 10, 0.02, 10


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearExplanation:
    """activation ~ bias + sum of weight * presence."""

    concepts: tuple[str, ...]
    """In the order in which they were chosen; none if nothing helps."""
    places: tuple[int, ...]
    """Their places in the list of concepts."""
    weights: Float[np.ndarray, " concept"]
    """Activation per unit of presence."""
    bias: float
    """Activation without any of them."""
    correlation: float
    """With the unit on the images that the choice was made on (not those of the fit); judge on a third set."""

    def predict(self, presence: Float[np.ndarray, "image all_concepts"]) -> Float[np.ndarray, " image"]:
        """The explained activation of any images."""
        return self.bias + np.asarray(presence, np.float64)[:, list(self.places)] @ self.weights

    def __str__(self) -> str:
        terms = [f"{weight:+.3g} {name}" for weight, name in zip(self.weights, self.concepts, strict=True)]
        return " ".join([f"{self.bias:.3g}", *terms])


def linear_explanation(
    activations: Float[np.ndarray, " image"],
    presence: Float[np.ndarray, "image concept"],
    names: Sequence[str],
    validation: tuple[Float[np.ndarray, " other"], Float[np.ndarray, "other concept"]],
    *,
    lam: float = LAM,
    l1_ratio: float = L1_RATIO,
    candidates: int = CANDIDATES,
    gain: float = GAIN,
    most: int = MOST,
) -> LinearExplanation:
    """A unit as a short weighted sum of concepts (**C**; solver ours).

    Args:
        activations: of the unit.
        presence: labels or probabilities of the same images.
        names: one per concept.
        validation: activations and presence of other images, for the choice.
        lam: penalty (**C**: 0.05).
        l1_ratio: share of it on absolute values (**C**: 0.99).
        candidates: largest weights that may be chosen (**C**: 10).
        gain: least gain in correlation (**C**: 0.02).
        most: concepts at most (**C**: 10).

    Raises:
        ShapeMismatch: arrays that do not fit together.
        BadData: a unit that is constant.
        OutOfRange: a penalty below 0.
        NotFinite: NaN or Inf.

    Example:
        >>> c = np.random.default_rng(0).integers(0, 2, (400, 5)).astype(float)
        >>> a = 3 * c[:, 1] - 2 * c[:, 4]
        >>> linear_explanation(a[:200], c[:200], list("vwxyz"), (a[200:], c[200:])).concepts
        ('w', 'z')
    """
    from sklearn.linear_model import ElasticNet

    a, c = np.asarray(activations, np.float64), np.asarray(presence, np.float64)
    va, vc = (np.asarray(array, np.float64) for array in validation)
    if a.ndim != 1 or c.shape != (len(a), len(names)) or vc.shape != (len(va), len(names)):
        raise ShapeMismatch(
            f"activations {list(a.shape)}, presence {list(c.shape)}, {len(names)} names, validation {list(va.shape)} "
            f"and {list(vc.shape)} do not fit together."
        )
    if lam < 0 or not 0 <= l1_ratio <= 1 or gain < 0 or most < 1 or candidates < 1:
        raise OutOfRange(f"lam={lam}, l1_ratio={l1_ratio}, gain={gain}, most={most}, candidates={candidates}.")
    for name, array in {"activations": a, "presence": c, "validation": va, "validation presence": vc}.items():
        finite(name, array)
    if a.std() == 0 or va.std() == 0:
        raise BadData("the unit is constant on the images of the fit, or of the choice: there is nothing to explain.")
    spread = c.std(0)
    z = (c - c.mean(0)) / np.where(spread > 0, spread, 1)
    net = ElasticNet(alpha=lam, l1_ratio=l1_ratio, max_iter=10_000).fit(z, (a - a.mean()) / a.std())
    order = np.argsort(-np.abs(net.coef_), kind="stable")[:candidates]
    pool = [int(i) for i in order if net.coef_[i] != 0]
    chosen: list[int] = []
    best, fitted = 0.0, (np.zeros(0), float(a.mean()))
    while pool and len(chosen) < most:
        tried = {i: _fit(a, c[:, [*chosen, i]]) for i in pool}
        values = {i: _correlation(va, bias + vc[:, [*chosen, i]] @ w) for i, (w, bias) in tried.items()}
        top = max(values, key=values.__getitem__)
        if values[top] - best < gain:
            break
        best, fitted = values[top], tried[top]
        chosen.append(top)
        pool.remove(top)
    weights, bias = fitted
    return LinearExplanation(
        concepts=tuple(names[i] for i in chosen),
        places=tuple(chosen),
        weights=weights,
        bias=bias,
        correlation=best,
    )


def _fit(a: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, float]:
    found = np.linalg.lstsq(np.column_stack([c, np.ones(len(c))]), a, rcond=None)[0]
    return found[:-1], float(found[-1])


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if y.std() > 1e-12 else 0.0
