"""What two weight matrices share by chance: random directions with the singular values that they have.

The composition score of a writer M1 and a reader M2 depends on their singular values s, r and on how the writer's
output directions lie to the reader's input directions: with G = V1^T U2,

    score^2 = sum_ij p_i G_ij^2 q_j,      p_i = s_i^2 / sum s^2,   q_j = r_j^2 / sum r^2.

If the directions have nothing to do with each other (one of the two frames is uniformly random: Gaussian weights of
any scale, whatever their shape), G is a block of a uniformly random orthogonal matrix of size d_model = d, whose
moments are known (**K**, Weingarten calculus; checked against random matrices in the tests, **P**):

    E G_ij^2 = 1/d           E G_ij^4 = 3/(d(d+2))
    E G_ij^2 G_ik^2 = 1/(d(d+2))   (one row or one column)
    E G_ij^2 G_kl^2 = (d+1)/(d(d-1)(d+2))   (neither)

So score^2 has the mean 1/d exactly, *whatever the singular values*, and a variance that they decide. A Beta
distribution with these two moments stands in for its distribution: exact for two matrices of rank one, an approximation
between that and full rank (**X**). No sampling, so no seed, and p-values without a floor.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from mechvis.errors import OutOfRange


@dataclass(frozen=True, kw_only=True, eq=False)
class Chance:
    """The score of random directions; all arrays have one shape."""

    mean: np.ndarray = field()
    """Expected score."""
    sd: np.ndarray = field()
    """Its standard deviation; 0 where the singular values leave no freedom."""
    a: np.ndarray = field()
    """First parameter of the Beta distribution of score^2; infinite where there is no freedom."""
    b: np.ndarray = field()
    """Second parameter."""

    def p(self, score: np.ndarray) -> np.ndarray:
        """Probability of at least this score for random directions; 1 where there is no freedom."""
        from scipy.special import betainc

        free = np.isfinite(self.a)
        a, b = np.where(free, self.a, 1.0), np.where(free, self.b, 1.0)
        # From the other end of the Beta distribution: 1 - cdf would round every small p to zero.
        return np.where(free, betainc(b, a, np.clip(1 - np.asarray(score) ** 2, 0, 1)), 1.0)

    def z(self, score: np.ndarray) -> np.ndarray:
        """Standard deviations above the expected score; 0 where there is no freedom."""
        free = self.sd > 0
        return np.where(free, (score - self.mean) / np.where(free, self.sd, 1.0), 0.0)


def shares(gains: Float[np.ndarray, "*head direction"]) -> Float[np.ndarray, "*head direction"]:
    """Squared singular values as shares of their sum; zero for a matrix that is zero."""
    squares = gains.astype(np.float64) ** 2
    total = squares.sum(-1, keepdims=True)
    return np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)


def by_chance(p: np.ndarray, q: np.ndarray, d: int) -> Chance:
    """The score between random directions.

    Args:
        p: shares of the writer's squared singular values `[... direction]`.
        q: shares of the reader's `[... direction]`; broadcast against `p` in all axes but the last.
        d: d_model.

    Raises:
        OutOfRange: d below 2.

    Example:
        >>> found = by_chance(np.ones(1), np.ones(1), 100)
        >>> round(float(found.mean), 3), round(float(found.sd), 3)      # |cosine| of two random directions
        (0.08, 0.06)
    """
    from scipy.special import gammaln

    if d < 2:
        raise OutOfRange(f"random directions need d_model of at least 2, got {d}.")
    same_p, same_q = (p**2).sum(-1), (q**2).sum(-1)
    unit = d * (d + 2)
    second = (
        same_p * same_q * 3
        + (same_p * (1 - same_q) + (1 - same_p) * same_q)
        + (1 - same_p) * (1 - same_q) * (d + 1) / (d - 1)
    ) / unit
    mean, variance = 1 / d, np.maximum(second - 1 / d**2, 0)
    free = variance > 1e-12 * mean**2  # below: rounding of a variance that is zero
    size = np.where(free, mean * (1 - mean) / np.where(free, variance, 1.0) - 1, np.inf)
    a, b = np.asarray(mean * size), np.asarray((1 - mean) * size)
    x, y = np.where(free, a, 1.0), np.where(free, b, 1.0)
    root = np.exp(gammaln(x + 0.5) + gammaln(x + y) - gammaln(x) - gammaln(x + y + 0.5))
    expected = np.where(free, root, np.sqrt(mean))
    return Chance(mean=expected, sd=np.where(free, np.sqrt(np.maximum(mean - expected**2, 0)), 0.0), a=a, b=b)


def frames(d: int, first: int, second: int, draws: int, seed: int) -> Float[np.ndarray, "draw first second"]:
    """Blocks G of uniformly random orthogonal matrices of size d, for statistics without a formula.

    Raises:
        OutOfRange: no draw, or more directions than d.
    """
    if draws < 1 or not (1 <= first <= d and 1 <= second <= d):
        raise OutOfRange(f"{draws} draws of {first} x {second} directions in {d} dimensions: at least one, at most d.")
    generator = np.random.default_rng(seed)
    blocks = np.empty((draws, first, second))
    for draw in range(draws):
        q, r = np.linalg.qr(generator.standard_normal((d, second)))
        # Without the signs the frames would not be uniform: QR makes the diagonal of r have one sign.
        blocks[draw] = (q * np.sign(np.diag(r)))[:first]
    return blocks
