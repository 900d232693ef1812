"""Does a class depend on a concept that people can show in pictures? TCAV with tests that hold (methods.md 12; **K**).

1. Activations of images with the concept, and of random images, at a site.
2. A concept activation vector per run, from one set of each (:mod:`probes.concepts.cav`).
3. Score of the run: share of the class's images on which a step along the vector raises the class logit (positive
   directional derivative).
4. The same with random images in the place of the concept: what a direction without meaning scores.
5. Welch's t-test between the scores of the concept's runs and of the random runs, two-sided; corrected over all
   concepts and classes that were tested.

**Runs must be independent, or random concepts become significant.** Gradients of one class are much alike, so even a
random direction scores near 0 or near 1; what tells a concept apart is that *other* images of it score the same. With
the same concept images in every run, a random set of images is as consistent as a concept: measured on random sets,
the published test rejects far more often than its 5 % (the tests of this module hold the figure). So every run here
draws images that no other run has (`fresh=True`, **X**), for which more images are needed; `fresh=False` is the
published habit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, NotFinite, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from probes.concepts.cav import Classifier
from probes.concepts.pieces import images_of_class
from probes.concepts.scores import TCAV, Correction, score_concepts
from probes.concepts.tail import class_of, named, pixels_of
from probes.features import collect

Tokens = Literal["read", "cls", "mean"]


def tcav(
    model: Any,
    images: ImageSet,
    concepts: Mapping[str, ImageSet],
    random: ImageSet,
    *,
    targets: Sequence[int | str] | int | str,
    site: str | None = None,
    tokens: Tokens = "read",
    runs: int = 20,
    fresh: bool = True,
    per_run: int | None = None,
    classifier: Classifier = "logistic",
    correction: Correction = "holm",
    level: float = 0.05,
    chosen: Literal["labelled", "predicted"] = "labelled",
    most: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> TCAV:
    """Test concepts given by example images for classes (Kim et al. 2018; **K**; independent runs **X**).

    Args:
        model: a wrapped model with a head.
        images: images whose classes are explained.
        concepts: name -> images that have the concept.
        random: other images, of the same kind as those of the concepts but without a common concept.
        targets: classes by name or number.
        site: where; default the stream after the first half of the blocks.
        tokens: what is read there, and along which a step is taken: the tokens that the model reads, the class token,
            or all patches.
        runs: of each concept, and at least so many of random; up to 50 where there are images for them.
        fresh: every run has images of its own, see the module.
        per_run: images of each set in a run; default: as many as there are, with `fresh` a `runs`-th of them.
        classifier: see :mod:`probes.concepts.cav`.
        correction: over all concepts and classes: `holm`, `bh` (false discovery rate), or `none`.
        level: of significance.
        chosen: images of a class: labelled, or predicted.
        most: at most so many images of a class.
        batch_size: images per forward.
        seed: of everything random.
        progress: show a progress bar.

    Returns:
        TCAV: `score` (mean over runs) with the interval over runs, `random_score`, `p`, `p_adjusted`, `significant`,
        the mean held-out `accuracy` of the vectors, and `slope`, the mean directional derivative per unit of length.

    Raises:
        BadData: too few images for independent runs; says how many are needed. No image of a class.
        SplitOverlap: concepts or random images among the images that are explained, or random images in a concept.
        UnknownName, OutOfRange, ShapeMismatch, NotFinite.

    Example:
        >>> found = tcav(model, images, {"striped": striped}, random, targets="star")              # doctest: +SKIP
        >>> found.table.select("concept", "target", "score", "p_adjusted")                         # doctest: +SKIP
    """
    wanted = [class_of(model, target) for target in ([targets] if isinstance(targets, int | str) else targets)]
    if not concepts or not wanted:
        raise BadData("give at least one concept and one class to test it for.")
    for name, shown in concepts.items():
        refuse_overlap(images, shown, what=f"the explained images and the concept {name!r}")
        refuse_overlap(random, shown, what=f"the random images and the concept {name!r}")
    refuse_overlap(images, random, what="the explained images and the random ones")
    site = site or f"blocks.{max(len(model.parts.blocks) // 2 - 1, 0)}.hook_resid_post"
    with track(len(concepts) + 1 + len(wanted), "TCAV", " sets", show=progress) as bar:
        rows = {}
        for name, shown in {**concepts, None: random}.items():
            rows[name] = rows_of(model, shown, site, tokens)
            bar.update(1)
        slopes = {}
        for target in wanted:
            shown = _of_class(model, images, target, chosen, most, batch_size)
            slopes[target] = slopes_of(model, shown, site, target, tokens, batch_size=batch_size)
            bar.update(1)
    names = model.parts.class_names
    return score_concepts(
        {name: value for name, value in rows.items() if name is not None},
        rows[None],
        {str(names[target]) if names else str(target): slopes[target] for target in wanted},
        runs=runs,
        fresh=fresh,
        per_run=per_run,
        classifier=classifier,
        correction=correction,
        level=level,
        seed=seed,
        about={"site": site, "tokens": tokens, "chosen": chosen},
        provenance=provenance(model=model, images=images, seed=seed, settings={"runs": runs, "fresh": fresh}),
    )


def rows_of(model: Any, images: Any, site: str, tokens: Tokens = "read") -> Float[np.ndarray, "image d"]:
    """Activations of images at a site, one row each."""
    found = collect(model, images, site, tokens=tokens, dtype="float64", progress=False)
    if len(found) != 1:
        raise BadData(f"{site!r} names {len(found)} sites; name one.")
    return next(iter(found.rows.values()))


def slopes_of(
    model: Any, images: Any, site: str, target: int, tokens: Tokens = "read", *, batch_size: int = 64
) -> Float[np.ndarray, "image d"]:
    """Derivative of a class logit for a step at a site, the same step in all tokens that `tokens` means.

    Raises:
        BadData: tokens that the model does not have.
        NotFinite: a gradient that is NaN or Inf.
    """
    parts = model.parts
    prefix = len(parts.prefix)
    if tokens not in ("read", "cls", "mean"):
        raise unknown("choice of tokens", tokens, ("read", "cls", "mean"))
    if tokens == "cls" and not prefix:
        raise BadData("this model has no class token; use tokens='mean' or 'read'.")
    found = []
    for start in range(0, len(images), batch_size):
        run = model.run(pixels_of(model, images[start : start + batch_size]), capture=[site], grad=True)
        value = run.cache[site]
        slope = torch.autograd.grad(run.output[:, target].sum(), value)[0]
        if slope.ndim > 2:
            slope = slope.flatten(2)
            if tokens == "cls":
                slope = slope[:, 0]
            elif tokens == "mean" or (parts.reads is None and prefix and parts.pooling is None):
                slope = slope[:, prefix:].sum(1)
            elif isinstance(parts.reads, tuple):
                slope = slope[:, list(parts.reads)].sum(1)
            else:
                slope = slope.sum(1)
        found.append(slope.detach().cpu().double().numpy())
    slopes = np.concatenate(found)
    if not np.isfinite(slopes).all():
        raise NotFinite(f"the gradient at {site} is NaN or Inf for some image.")
    return slopes


def _of_class(model: Any, images: ImageSet, target: int, chosen: str, most: int, batch_size: int) -> ImageSet:
    found = images_of_class(model, named(model, images), target, chosen, batch_size, least=1)
    return found[: min(most, len(found))]
