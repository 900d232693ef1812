"""Total Sobol indices: in what share of the answer's variance does a concept take part? (CRAFT; methods.md 12, **C**)

1. Two designs A and B of masks in [0, 1], from one quasi-random Halton sequence (32 points).
2. For each concept i: A with column i taken from B.
3. `ST_i = sum (f(A) - f(A_B^i))^2 / (2 n Var f(A))`, Jansen's estimator; `n (K + 1)` answers per image.

A constant answer has no variance to share: all indices are 0. The index has no sign.

The plain Halton sequence is no design for many concepts and 32 points: in a base above the number of points, its
coordinates only rise (i/base), so all such concepts would move together and hardly at all. So it is scrambled here
(**X**), and `scramble=False` is the published sequence. Measured on ten random linear heads of 20 concepts, 32 points:
rank correlation with the true indices .985 scrambled, .898 plain; with 512 points both .998.
"""

import numpy as np
import torch
from jaxtyping import Float

from mechvis.errors import OutOfRange
from probes.concepts.game import Game


def design_of(
    n_concepts: int, design: int = 32, *, scramble: bool = True, seed: int = 0
) -> tuple[Float[np.ndarray, "point concept"], Float[np.ndarray, "point concept"]]:
    """Two designs of masks in [0, 1] from one Halton sequence.

    Raises:
        OutOfRange: fewer than two points.

    Example:
        >>> first, second = design_of(3, 8)
        >>> first.shape, bool((first != second).all())
        ((8, 3), True)
    """
    from scipy.stats.qmc import Halton

    if design < 2:
        raise OutOfRange(f"design={design}: a variance needs at least 2 points.")
    points = Halton(2 * n_concepts, scramble=scramble, rng=np.random.default_rng(seed)).random(design)
    return points[:, :n_concepts], points[:, n_concepts:]


def jansen(
    answers: Float[np.ndarray, "image point"], changed: Float[np.ndarray, "image concept point"]
) -> Float[np.ndarray, "image concept"]:
    """Jansen's estimator from the answers to A and to A with one column of B.

    Example:
        >>> jansen(np.array([[0.0, 2.0]]), np.array([[[2.0, 0.0]]]))
        array([[2.]])
    """
    variance = answers.var(axis=1)
    # Rounding leaves a trace of variance in a constant answer.
    least = (1e-7 * np.abs(answers).max(axis=1)) ** 2
    known = variance > least
    squares = ((answers[:, None] - changed) ** 2).mean(axis=2)
    return np.where(known[:, None], squares / (2 * np.where(known, variance, 1.0))[:, None], 0.0)


def sobol(game: Game, *, design: int = 32, scramble: bool = True, seed: int = 0) -> Float[np.ndarray, "image concept"]:
    """Total Sobol indices of a game's concepts; see the module.

    Args:
        game: what is asked.
        design: points of the design.
        scramble: scramble the Halton sequence.
        seed: of the scrambling.
    """
    k = game.n_concepts
    first, second = (
        torch.from_numpy(part).to(game.codes.dtype) for part in design_of(k, design, scramble=scramble, seed=seed)
    )
    mixed = first.repeat(k, 1, 1)
    for concept in range(k):
        mixed[concept, :, concept] = second[:, concept]
    answers = game.on_every_image(torch.cat([first, mixed.flatten(0, 1)]))
    return jansen(answers[:, :design], answers[:, design:].reshape(len(answers), k, design))
