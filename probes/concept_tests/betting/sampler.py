"""Concept scores drawn given some of them: what the conditional and the local test compare with.

A weighted Gaussian kernel density: reference image i has the weight `exp(-|z_S - Z_iS|^2 / 2 s^2)` (scores in units of
their standard deviation), s chosen for each query so that the effective number of images, `(sum w)^2 / sum w^2`, is the
one asked for (**C**). A draw takes an image by its weight and adds Gaussian noise with the weighted covariance of the
free scores times Scott's factor f squared. Two corrections, both on by default (X):

* `adjust`: an image that is taken is not quite at the query, and with many given scores not even near. The free scores
  are therefore moved along their linear regression on the given ones; the density is that of the residuals;
* `keep_spread`: density estimates are too wide by the noise, so what is taken is first drawn towards the weighted mean
  by `sqrt(1 - f^2)`.

The tests are only as good as this sampler: :func:`sampler_check` compares drawn with real scores on images that it has
not seen. A reference of few images makes it crude: the effective number is by default 2000 (**C**), but at most a tenth
of the reference (X), since 2000 of 2000 would condition on nothing.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap

ESS = 2000
LEAST = 10
"""Smallest effective number of images by default."""
_CHUNK = 2**22


class ConditionalSampler:
    """Draws concept scores given some of them.

    Args:
        reference: scores of images that are not tested, `[image concept]`.
        ess: effective number of images behind each draw; None: 2000, at most a tenth of the reference.
        adjust: move draws along the linear regression on what is given; False for the plain form.
        keep_spread: draws are as wide as the weighted images, not wider by the noise; False for the plain form.
        ids: names of the reference images, to refuse tests on the same.

    Raises:
        ShapeMismatch, NotFinite: no `[image concept]` of finite numbers.
        BadData: fewer than 20 images, or a constant concept.
        OutOfRange: an effective number that the reference cannot have.

    Example:
        >>> sampler = ConditionalSampler(np.random.default_rng(0).normal(size=(500, 3)))
        >>> sampler.draw(np.zeros((4, 3)), [0, 2], np.random.default_rng(1)).shape
        (1, 4, 3)
    """

    def __init__(
        self,
        reference: Float[np.ndarray, "image concept"],
        *,
        ess: float | None = None,
        adjust: bool = True,
        keep_spread: bool = True,
        ids: Sequence[str] = (),
    ):
        self.reference = scores(reference)
        self.adjust, self.keep_spread, self.ids = adjust, keep_spread, frozenset(ids)
        n = len(self.reference)
        if n < 2 * LEAST:
            raise BadData(f"{n} reference images are too few to draw from; at least {2 * LEAST}.")
        self.scale = self.reference.std(0)
        if not (self.scale > 0).all():
            raise BadData(
                f"concept {int((self.scale == 0).argmax())} has one score for all reference images; leave it out."
            )
        self.ess = min(ESS, max(LEAST, n / 10)) if ess is None else float(ess)
        if not 1 < self.ess < n:
            raise OutOfRange(f"ess={ess}: an effective number between 1 and the {n} reference images.")

    @property
    def n_concepts(self) -> int:
        """How many concepts."""
        return self.reference.shape[1]

    def refuse(self, z: Float[np.ndarray, "image concept"], ids: Sequence[str] = ()) -> None:
        """Refuse to be tested on images of the reference: their own scores would be drawn.

        Raises:
            SplitOverlap: the same names, or the very same scores.
        """
        shared = len(self.ids & set(ids))
        n = min(len(z), len(self.reference))
        if not shared and z.shape[1] == self.n_concepts and np.array_equal(z[:n], self.reference[:n]):
            shared = n
        if shared:
            raise SplitOverlap(f"{shared} tested images are in the sampler's own reference; make it from other images.")

    def width(
        self, z: Float[np.ndarray, "query concept"], given: Int[np.ndarray, " some"]
    ) -> Float[np.ndarray, " query"]:
        """Width s for every query, such that the effective number of images is the one asked for."""
        squared = self._squared(z, self._given(given))
        low, high = np.full(len(z), -8.0), np.full(len(z), 8.0)
        for _ in range(30):
            middle = (low + high) / 2
            w = np.exp(-squared / (2 * np.exp(2 * middle)[:, None]))
            enough = np.square(w.sum(1)) / np.square(w).sum(1) >= self.ess
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.exp(high)

    def weights(
        self,
        z: Float[np.ndarray, "query concept"],
        given: Int[np.ndarray, " some"],
        width: Float[np.ndarray, " query"] | None = None,
    ) -> Float[np.ndarray, "query image"]:
        """Weight of every reference image for every query; rows sum to 1.

        Args:
            z: scores of the queries.
            given: concepts that are held; with none all images weigh alike.
            width: of the kernel; default: :meth:`width`.

        Raises:
            OutOfRange: a concept that does not exist.
        """
        given = self._given(given)
        if not len(given):
            return np.full((len(z), len(self.reference)), 1 / len(self.reference))
        width = self.width(z, given) if width is None else width
        w = np.exp(-self._squared(z, given) / (2 * np.square(width)[:, None]))
        return w / w.sum(1, keepdims=True)

    def _squared(self, z: np.ndarray, given: np.ndarray) -> Float[np.ndarray, "query image"]:
        a, b = z[:, given] / self.scale[given], self.reference[:, given] / self.scale[given]
        squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
        # From the nearest image on: only differences matter, and the nearest then keeps its weight.
        return squared - squared.min(1, keepdims=True)

    def draw(
        self,
        z: Float[np.ndarray, "query concept"],
        given: Int[np.ndarray, " some"],
        generator: np.random.Generator,
        *,
        draws: int = 1,
    ) -> Float[np.ndarray, "draw query concept"]:
        """Draws for each query: the given scores as they are, the others drawn.

        Args:
            z: scores of the queries; what is not given is not looked at.
            given: indices of the concepts that are held; may be none.
            generator: of the randomness.
            draws: how many for each query.

        Raises:
            ShapeMismatch, NotFinite: scores that do not fit.
            OutOfRange: a concept that does not exist, or no draw.
        """
        z = scores(z)
        if z.shape[1] != self.n_concepts:
            raise ShapeMismatch(f"the sampler knows {self.n_concepts} concepts, got scores {list(z.shape)}.")
        if draws < 1:
            raise OutOfRange(f"draws={draws}: at least 1.")
        given = self._given(given)
        free = np.setdiff1d(np.arange(self.n_concepts), given)
        drawn = np.repeat(z[None], draws, axis=0)
        if not len(free):
            return drawn
        slope = np.zeros((len(given), len(free)))
        if self.adjust and len(given):
            centred = self.reference - self.reference.mean(0)
            slope = np.linalg.lstsq(centred[:, given], centred[:, free], rcond=1e-8)[0]
        rest = self.reference[:, free] - self.reference[:, given] @ slope
        factor = self.ess ** (-1 / (len(free) + 4))
        step = max(1, _CHUNK // len(rest))
        for start in range(0, len(z), step):
            w = self.weights(z[start : start + step], given)
            up = w.cumsum(1)
            for query in range(len(w)):
                picked = np.searchsorted(up[query], generator.random(draws) * up[query, -1], side="right")
                mean = w[query] @ rest
                new = rest[np.minimum(picked, len(rest) - 1)] - mean
                if self.keep_spread:
                    new = np.sqrt(1 - factor**2) * new
                noise = generator.normal(size=(draws, len(free))) @ _root(rest - mean, w[query])
                at = mean + z[start + query, given] @ slope
                drawn[:, start + query, free] = at + new + factor * noise
        return drawn

    def _given(self, given: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        given = np.asarray(given, dtype=int).reshape(-1)
        if len(given) and (given.min() < 0 or given.max() >= self.n_concepts):
            raise OutOfRange(f"concepts {given.tolist()} of {self.n_concepts} (0 to {self.n_concepts - 1}).")
        return np.unique(given)


def _root(centred: np.ndarray, w: np.ndarray) -> Float[np.ndarray, "free free"]:
    """A matrix whose square is the weighted covariance."""
    values, vectors = np.linalg.eigh((centred * w[:, None]).T @ centred)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def sampler_check(
    sampler: ConditionalSampler,
    z: Float[np.ndarray, "image concept"],
    concept: int,
    *,
    flips: int = 999,
    seed: int = 0,
) -> float:
    """Are drawn scores like real ones? A two-sample test on images that the sampler has not seen.

    Drawn and real score of an image stand beside the same other scores, so under the hypothesis they can be exchanged
    image by image: MMD of the joint scores, with the sign of each image's row flipped at random.

    Args:
        sampler: to judge.
        z: scores of other images; at most 400 of them are used.
        concept: which score is drawn given all others.
        flips: random exchanges.
        seed: of the draw and the exchanges.

    Returns:
        p-value; a small one says that the conditional test of this concept cannot be trusted.

    Raises:
        SplitOverlap: images of the sampler's own reference.
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> sampler_check(sampler, held_out, 0)                                                    # doctest: +SKIP
        0.41
    """
    z = scores(z)[:400]
    sampler.refuse(z)
    if flips < 1:
        raise OutOfRange(f"flips={flips}: at least 1.")
    generator = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(sampler.n_concepts), [concept])
    drawn = sampler.draw(z, others, generator)[0]
    both = np.concatenate([z, drawn]) / sampler.scale
    squared = np.square(both).sum(1)[:, None] + np.square(both).sum(1) - 2 * both @ both.T
    kernel = np.exp(-squared / np.median(squared[squared > 0]))
    n = len(z)
    h = kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]
    np.fill_diagonal(h, 0)
    signs = generator.choice([-1.0, 1.0], size=(flips, n))
    by_chance = np.einsum("fi,ij,fj->f", signs, h, signs, optimize=True)
    return float((1 + (by_chance >= h.sum()).sum()) / (flips + 1))


def scores(z: np.ndarray) -> Float[np.ndarray, "image concept"]:
    """Concept scores in float64, or an error that says why not."""
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2 or not z.size:
        raise ShapeMismatch(f"concept scores are [image concept], got {list(z.shape)}.")
    if not np.isfinite(z).all():
        raise NotFinite(f"the concept scores of image {int((~np.isfinite(z)).any(1).argmax())} hold NaN or Inf.")
    return z
