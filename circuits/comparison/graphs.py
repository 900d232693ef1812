"""The circuit of a data set: every edge's weight in the model's answers on some images, without labels.

    c(e) = mean over images of KL( model || model without edge e )            (methods.md 4.1 **C**)

estimated for all edges at once by EAP-IG (inputs), a cut edge carrying its writer's mean per token. Defaults are ours
(midpoint rule, 10 steps, **X**); `preset="inside-out"` is the released script: left rule, 5 steps, KL averaged over
classes instead of summed, and means of the very images that are measured (**C**). Spearman distances move with the
number of steps of the left rule, so compare scores of one preset only.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from circuits.attribution.eap import RULES, Rule, edge_result, edge_values
from circuits.comparison.ddb import PRESETS, Preset
from circuits.comparison.scores import EdgeScores
from circuits.task import Task, task
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.results import Result

SETTINGS: dict[str, tuple[int, Rule]] = {"mechvis": (10, "midpoint"), "inside-out": (5, "left")}
"""Steps and rule of each preset."""


def data_graph(
    model: Any,
    images: Any,
    *,
    mean_images: Any = None,
    mean_share: float = 0.25,
    preset: Preset = "mechvis",
    steps: int | None = None,
    rule: Rule | None = None,
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Weights of all edges on a set of images, per image: what DDB and CSS are made of.

    Args:
        model: a wrapped model with a head.
        images: an `ImageSet` (labels are not looked at) or pixels.
        mean_images: images that the means are made of. Default: a random share of `images`, which then is not measured;
            with the preset `inside-out`, `images` themselves.
        mean_share: that share.
        preset: `mechvis` or `inside-out`, see the module.
        steps: of the integration; default: the preset's.
        rule: of the integration; default: the preset's.
        budget: memory for activations, e.g. `"8GB"`.
        seed: of that random share, and of the intervals.
        progress: show a progress bar.

    Returns:
        One row per edge: effect in nats, with intervals over images and per-image values. It saves, loads and draws
        itself, and `circuits.comparison.ddb`, `circuits.comparison.css`, `circuits.select` read it.

    Raises:
        SplitOverlap: `mean_images` that are measured too.
        BadData, OutOfRange, UnknownName, UnsupportedModel, NotFinite: as :func:`circuits.task` and `circuits.eap`.

    Example:
        >>> graph = circuits.comparison.data_graph(model, images)                                  # doctest: +SKIP
        >>> print(circuits.comparison.ddb(graph))                                                  # doctest: +SKIP
    """
    measured_images, means = means_for(images, mean_images, mean_share, preset, seed)
    made, values = measured(
        model, measured_images, means, preset=preset, steps=steps, rule=rule, budget=budget, progress=progress
    )
    steps, rule = settings_of(preset, steps, rule)
    return edge_result(
        made,
        values,
        kind="data_graph",
        title=f"edges on {made.name} (EAP-IG inputs, {steps} steps, {rule}, kl, mean_positional)",
        seed=seed,
        method="ig",
        steps=steps,
        rule=rule,
        preset=preset,
        mean_images=len(means),
    )


def settings_of(preset: Preset, steps: int | None, rule: Rule | None) -> tuple[int, Rule]:
    """Steps and rule, the preset's where they are not given.

    Raises:
        UnknownName: no such preset or rule.
        OutOfRange: fewer than one step.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    if rule not in (None, *RULES):
        raise unknown("rule", rule, RULES)
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise OutOfRange(f"steps={steps!r}: a path needs at least one step.")
    own_steps, own_rule = SETTINGS[preset]
    return own_steps if steps is None else steps, own_rule if rule is None else rule


def means_for(images: Any, mean_images: Any, share: float, preset: Preset, seed: int) -> tuple[Any, Any]:
    """The images that are measured, and those that their means are made of.

    Raises:
        OutOfRange: a share outside 0 to 1.
        BadData: too few images to split.
    """
    if mean_images is not None:
        return images, mean_images
    if preset == "inside-out":
        return images, images
    if not 0 < share < 1:
        raise OutOfRange(f"mean_share={share}: a share between 0 and 1 of the images.")
    n = round(share * len(images))
    if n < 1 or n >= len(images):
        raise BadData(
            f"{share:.0%} of {len(images)} images for the means leaves {len(images) - n} to measure; pass more images, "
            "or mean_images=."
        )
    order = np.random.default_rng(seed).permutation(len(images))
    return images[np.sort(order[n:])], images[np.sort(order[:n])]


def measured(
    model: Any,
    images: Any,
    means: Any,
    *,
    preset: Preset = "mechvis",
    steps: int | None = None,
    rule: Rule | None = None,
    budget: str | int | None = None,
    progress: bool = False,
) -> tuple[Task, Float[np.ndarray, "edge image"]]:
    """The task, and the score of every edge on every image; arguments as in :func:`data_graph`.

    `means` may be `images` themselves, as in the released code; otherwise the two must share no image.
    """
    steps, rule = settings_of(preset, steps, rule)
    made = task(
        model,
        _unlabelled(images),
        ablation="mean_positional",
        reference=_unlabelled(means),
        metric="kl",
        labels="predicted",
        budget=budget,
        allow_overlap=means is images,
    )
    values = edge_values(made, method="ig", steps=steps, rule=rule, progress=progress)
    if preset == "inside-out":
        # The scores are linear in the metric: averaging it over classes divides them.
        values = values / len(model.run(made.clean[:1]).output[0])
    return made, values


def scores_on(model: Any, images: Any, means: Any, **settings: Any) -> EdgeScores:
    """The same as :class:`EdgeScores`."""
    made, values = measured(model, images, means, **settings)
    return EdgeScores(graph=made.graph, values=values)


def own_means(model: Any, images: Any, **settings: Any) -> Callable[[Int[np.ndarray, " image"]], np.ndarray]:
    """Weights of the edges from some images, measured anew with the means of just these (`mean_from="own"`)."""
    known: dict[bytes, np.ndarray] = {}

    def weigh(rows: np.ndarray) -> np.ndarray:
        key = np.asarray(rows).tobytes()
        if key not in known:
            some = images[rows]
            known[key] = scores_on(model, some, some, **settings).weights
        return known[key]

    return weigh


def _unlabelled(images: Any) -> Any:
    """Without labels: a set whose classes are not the model's is as good as any here."""
    if isinstance(images, ImageSet):
        return replace(images, labels=None, class_names=())
    return images
