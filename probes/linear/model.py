"""From a model and images to probes of all its layers, baselines included: the usual call, and `mechvis probe`.

One pass over the images for the features of all sites and tokens; with `random` a second one through a copy with random
weights; with `pixels` the raw pixels. Then :func:`probes.linear.probe_layers`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.errors import unknown
from mechvis.models.random_copy import random_copy
from mechvis.stats import RESAMPLES
from probes.features import Choice, collect
from probes.linear.baselines import pixel_features
from probes.linear.layers import WEIGHT_DECAYS, probe_layers
from probes.linear.record import LinearProbes
from probes.linear.solvers import Solver
from probes.linear.split import FRACTIONS

Baseline = Literal["random", "pixels"]


def probe_model(
    model: Any,
    images: ImageSet,
    *,
    sites: str | Sequence[str] = "blocks.*.hook_resid_post",
    tokens: Choice | Sequence[Choice] = "read",
    target: str | np.ndarray | None = None,
    types: str | np.ndarray | None = None,
    together: str | np.ndarray | None = None,
    baselines: Sequence[Baseline] = ("random", "pixels"),
    fractions: tuple[float, float, float] = FRACTIONS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    ranks: Sequence[int] = (),
    code: bool = True,
    solver: Solver = "auto",
    features_folder: str | Path | None = None,
    resamples: int = RESAMPLES,
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> LinearProbes:
    """Probe all layers of a model for one target.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet`.
        sites: names or patterns.
        tokens: one choice or several, see :mod:`probes.features`.
        target: what to read: a column (default: the labels), or an array, see :func:`probes.linear.probe_layers`.
        types: a column of groups for the second control task.
        together: a column of groups that the split never cuts.
        baselines: of `random` (a copy with random weights) and `pixels`; the commonest class is always there.
        fractions: of train, validation and test.
        weight_decays: to choose from by the validation loss.
        ranks: besides the full probe.
        code: compute online code lengths.
        solver: of the probes, see :mod:`probes.linear.solvers`.
        features_folder: keep the features here, for more than fits into memory.
        resamples: of the bootstrap.
        budget: memory for a forward pass.
        seed: of split, controls, random weights and bootstrap.
        progress: show progress bars.

    Raises:
        UnknownName: no such baseline, column, token choice or solver.
        UnknownSite: no such site.
        BadData, SplitOverlap, NotFinite, OutOfMemory: see :func:`probes.features.collect` and
            :func:`probes.linear.probe_layers`.

    Example:
        >>> probe_model(model, images, tokens=["cls", "mean"], types="colour").figure()            # doctest: +SKIP
    """
    for baseline in baselines:
        if baseline not in ("random", "pixels"):
            raise unknown("baseline", baseline, ("random", "pixels"))
    shared = {"tokens": tokens, "budget": budget, "progress": progress}
    folder = None if features_folder is None else Path(features_folder)
    features = collect(model, images, sites, out=folder, **shared)
    given: dict[str, Any] = {}
    if "random" in baselines:
        other = None if folder is None else folder / "random"
        given["random model"] = collect(random_copy(model, seed=seed), images, sites, out=other, **shared)
    if "pixels" in baselines:
        given["raw pixels"] = pixel_features(model, images)
    return probe_layers(
        features,
        target=target,
        types=types,
        together=together,
        baselines=given,
        fractions=fractions,
        weight_decays=weight_decays,
        ranks=ranks,
        code=code,
        solver=solver,
        resamples=resamples,
        seed=seed,
        progress=progress,
    )
