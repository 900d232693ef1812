"""Tests of one concept: does the output depend on it, given the others, or for this one image?

Each test is run for several orders of the data (or, for one image, several sets of draws), all side by side. A sample
takes part once in a run. That is what makes a run valid, so names of images that repeat are refused.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown
from probes.concept_tests.betting.kernels import Widths
from probes.concept_tests.betting.payoffs import Conditional, Global, Local
from probes.concept_tests.betting.sampler import ConditionalSampler, scores
from probes.concept_tests.betting.wealth import ALPHA, TAU_MAX, Outcome, bet


def global_test(
    y: Float[np.ndarray, " image"],
    z: Float[np.ndarray, " image"],
    *,
    alpha: float = ALPHA,
    tau_max: int = TAU_MAX,
    orders: int = 1,
    stop: float | None = None,
    widths: Widths | None = None,
    ids: Sequence[str] = (),
    seed: int = 0,
) -> Outcome:
    """Is the output independent of the concept's score?

    Args:
        y: output per image, `[image]` or `[image d]`.
        z: score of the concept, likewise.
        alpha: level.
        tau_max: longest run in steps; each takes two images. With fewer images, as many as they allow.
        orders: runs, each over the images in another random order.
        stop: wealth at which a run ends, see :func:`bet`.
        widths: of the kernels.
        ids: names of the images; one that comes twice is refused.
        seed: of the orders.

    Raises:
        BadData: fewer than four images, or names that repeat.
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> y = np.random.default_rng(0).normal(size=400)
        >>> bool(global_test(y, y + 0.1).rejected[0])
        True
    """
    y, z = columns("outputs", y), columns("scores", z)
    steps = _steps(len(y), len(z), 2, tau_max, orders, ids)
    order = _orders(len(y), 2 * steps, orders, seed)
    return bet(Global(y[order], z[order], widths or Widths()), orders, alpha=alpha, stop=stop)


def conditional_test(
    y: Float[np.ndarray, " image"],
    z: Float[np.ndarray, "image concept"],
    concept: int,
    sampler: ConditionalSampler,
    *,
    alpha: float = ALPHA,
    tau_max: int = TAU_MAX,
    orders: int = 1,
    stop: float | None = None,
    widths: Widths | None = None,
    ids: Sequence[str] = (),
    seed: int = 0,
) -> Outcome:
    """Is the output independent of the concept's score, given the scores of all other concepts?

    Args:
        y: output per image, `[image]` or `[image d]`.
        z: scores of all concepts.
        concept: which one is tested.
        sampler: draws its score given the others; made from *other* images.
        alpha, tau_max, orders, stop, widths, ids, seed: as in :func:`global_test`; a step takes one image.

    Raises:
        BadData: one concept only, or names that repeat.
        SplitOverlap: images of the sampler's reference.
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> conditional_test(y, z, 2, ConditionalSampler(z_of_others)).rejected              # doctest: +SKIP
        array([ True])
    """
    y, z = columns("outputs", y), scores(z)
    if z.shape[1] < 2:
        raise BadData("with one concept there is nothing to condition on; use global_test.")
    if not 0 <= concept < z.shape[1]:
        raise OutOfRange(f"concept {concept} of {z.shape[1]} (0 to {z.shape[1] - 1}).")
    steps = _steps(len(y), len(z), 1, tau_max, orders, ids)
    sampler.refuse(z, ids)
    others = np.setdiff1d(np.arange(z.shape[1]), [concept])
    order = _orders(len(y), steps, orders, seed)
    generator = np.random.default_rng([seed, concept])
    # Every run draws anew, image by image.
    drawn = sampler.draw(z, others, generator, draws=orders)[:, :, [concept]] / sampler.scale[concept]
    drawn = np.take_along_axis(drawn, order[:, :, None], axis=1)
    unit = z / sampler.scale
    game = Conditional(y[order], unit[order][:, :, [concept]], drawn, unit[order][:, :, others], widths or Widths())
    return bet(game, orders, alpha=alpha, stop=stop)


def local_test(
    z: Float[np.ndarray, " concept"],
    concept: int,
    sampler: ConditionalSampler,
    outputs: Float[np.ndarray, " reference"],
    *,
    given: Sequence[int] = (),
    draws: Literal["weights", "nearest"] = "weights",
    alpha: float = ALPHA,
    tau_max: int | None = None,
    orders: int = 1,
    stop: float | None = None,
    widths: Widths | None = None,
    seed: int = 0,
) -> Outcome:
    """For one image: does holding the concept at its score change what the model says, beside those that are held?

    Reference images, whose outputs are known, stand for draws of the embedding; so no forward pass is needed.

    * `weights` (X): an image is taken by its weight, with the concept and `given` held, and with `given` alone, both
      with one width of the kernel. Then both sides are blurred alike, and differ by the concept only.
    * `nearest` (**C**): scores are drawn, and the image with the nearest scores is taken. The few nearest images of
      scores that are held fast differ from the query by chance, and a long run finds that out: where the output hangs
      on the given concepts, true hypotheses are rejected in a fifth of the runs and more.

    Args:
        z: the image's scores.
        concept: which one is tested.
        sampler: weighs its reference images, or draws scores.
        outputs: the model's output for each reference image, `[reference]` or `[reference d]`.
        given: concepts that are held in both.
        draws: see above.
        tau_max: longest run; default 400, at most the effective number of images.
        alpha, stop, widths, seed: as in :func:`global_test`.
        orders: runs, each with its own draws.

    Raises:
        BadData: the tested concept among the given ones.
        UnknownName: another kind of draws.
        OutOfRange: a run that is longer than there are images to draw from, in effective number.
        ShapeMismatch, NotFinite.

    Example:
        >>> local_test(z[0], 2, ConditionalSampler(z_of_others), outputs_of_others).rejected       # doctest: +SKIP
        array([ True])
    """
    if draws not in ("weights", "nearest"):
        raise unknown("kind of draws", draws, ("weights", "nearest"))
    z, outputs = scores(np.asarray(z)[None])[0], columns("outputs of the reference", outputs)
    if len(outputs) != len(sampler.reference) or len(z) != sampler.n_concepts:
        raise ShapeMismatch(
            f"the sampler knows {len(sampler.reference)} images of {sampler.n_concepts} concepts; got {len(outputs)} "
            f"outputs and {len(z)} scores."
        )
    if not 0 <= concept < len(z):
        raise OutOfRange(f"concept {concept} of {len(z)} (0 to {len(z) - 1}).")
    if concept in given:
        raise BadData(f"concept {concept} is tested, so it cannot be among the given ones {list(given)}.")
    tau_max = min(TAU_MAX, int(sampler.ess)) if tau_max is None else tau_max
    _positive(tau_max, orders)
    if tau_max > sampler.ess:
        raise OutOfRange(
            f"tau_max={tau_max} draws from effectively {sampler.ess:g} images: the test would find out that they are "
            "few. Lower tau_max, or give the sampler more images or a larger ess."
        )
    generator = np.random.default_rng([seed, concept])
    query, both = z[None], np.array([*given, concept], dtype=int)
    width = sampler.width(query, both)
    sides = []
    for held in (both, both[:-1]):
        if draws == "weights":
            w = sampler.weights(query, held, width)[0]
            picked = generator.choice(len(w), size=orders * tau_max, p=w)
        else:
            picked = _nearest(sampler, sampler.draw(query, held, generator, draws=orders * tau_max)[:, 0])
        sides.append(outputs[picked].reshape(orders, tau_max, -1))
    return bet(Local(*sides, widths or Widths()), orders, alpha=alpha, stop=stop)


def _nearest(sampler: ConditionalSampler, drawn: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(sampler.reference / sampler.scale).query(drawn / sampler.scale)[1]


def columns(what: str, values: np.ndarray) -> Float[np.ndarray, "image d"]:
    """One row per image in float64, or an error that says why not."""
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not values.size:
        raise ShapeMismatch(f"{what} are [image] or [image d], got {list(values.shape)}.")
    if not np.isfinite(values).all():
        raise NotFinite(f"{what}: image {int((~np.isfinite(values)).any(1).argmax())} holds NaN or Inf.")
    return values


def _positive(tau_max: int, orders: int) -> None:
    if tau_max < 2 or orders < 1:
        raise OutOfRange(f"tau_max={tau_max} (at least 2 steps) and orders={orders} (at least 1).")


def _steps(n: int, n_scores: int, per_step: int, tau_max: int, orders: int, ids: Sequence[str]) -> int:
    _positive(tau_max, orders)
    if n != n_scores:
        raise ShapeMismatch(f"{n} outputs but scores of {n_scores} images.")
    if ids and (len(ids) != n or len(set(ids)) != n):
        raise BadData(
            f"{n} images with {len(set(ids))} different names: an image may take part in a run once only, else the "
            "test rejects true hypotheses."
        )
    if n < 2 * per_step:
        raise BadData(f"{n} images are too few: a step takes {per_step}, and the first step has nothing to learn from.")
    return min(tau_max, n // per_step)


def _orders(n: int, used: int, orders: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(n)[:used] for _ in range(orders)])
