"""Which patches say the class: one linear probe on every patch, and a map of where it is right (methods.md 3.2).

1. The rows are the patches of all images (`tokens="patches"`), each with its image's class. One probe for all places:
   it cannot learn that a class sits in a corner, only what a patch's activation says.
2. On held-out images: the probability that each patch gives to its image's class, `[image down across]`, and its share
   of right answers per place of the grid, with intervals over images.
3. Given object masks: does the probability find the object? AUROC of patches inside against outside, per image, beside
   two baselines that know nothing of the image: the distance to the centre, and the mean map of the other images.

Patches of one image say nearly the same, so images are resampled, never patches.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis.errors import BadData, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import RESAMPLES, bootstrap, paired_difference
from probes.features import Features
from probes.linear.batches import rows_of
from probes.linear.estimators import ClassProbe
from probes.linear.judge import kind_of
from probes.linear.split import FRACTIONS, Split, split_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block

WORDS = {
    "row": "place of the patch, from above",
    "column": "from the left",
    "accuracy": "share of held-out images whose patch here is read right; _low, _high: 95 % interval over images",
    "auroc": "chance that a patch inside the object gives the class more probability than one outside; mean of images",
    "above": "auroc - that of the baseline, paired over images",
}
CAVEATS = (
    "After the first layer a patch holds what attention brought there: a patch that says the class need not show it.",
    "One probe serves all places; one for each place would read more, and could also learn where a class tends to be.",
)


class PatchProbe(Record):
    """Where in the image a class can be read; `table` has one row per place of the grid.

    Tables besides: `object` (AUROC against masks) where they were given. Arrays: `maps` `[image down across]`
    (probability of the image's class), `test`, `weights`, `bias`.
    """

    KIND: ClassVar[str] = "patch_probe"

    def grid(self, column: str = "accuracy") -> Float[np.ndarray, "down across"]:
        """A column of the table as a map."""
        shape = (self.table["row"].max() + 1, self.table["column"].max() + 1)
        return self.table[column].to_numpy().reshape(shape)

    def figure(self) -> "Figure":
        """Accuracy per place of the grid."""
        from matplotlib.figure import Figure

        from mechvis.plots.look import INK, plain

        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.imshow(self.grid(), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(plain(self.title), loc="left", size=9, color=INK)
        bar = figure.colorbar(drawn, ax=axes, fraction=0.046)
        bar.set_label(f"accuracy (chance {self.facts['chance']:.2f})", size=8)
        return figure

    def figures(self) -> "list[Block]":
        """The map of accuracies."""
        from mechvis.report.blocks import Figure

        return [Figure(self.figure(), "Share of held-out images whose patch at this place is read right.")]


def probe_patches(
    features: Features,
    name: str | None = None,
    *,
    target: str | np.ndarray | None = None,
    split: Split | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    masks: Bool[np.ndarray, "image down across"] | None = None,
    weight_decay: float | None = 1e-2,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **settings: Any,
) -> PatchProbe:
    """One probe on the patches of one site, and maps of where it reads the class.

    Args:
        features: collected with `tokens="patches"`.
        name: which of its matrices; may be left out where there is one.
        target: a column of classes (default: the labels), or one class per image.
        split: who trains (validation too) and who judges; default by `fractions` and `seed`.
        fractions: of train, validation and test.
        masks: True where a patch shows the object (e.g. more than half of it), for all images.
        weight_decay: of the probe (**X**).
        resamples: of the bootstrap.
        seed: of split and bootstrap.
        settings: of the probe.

    Raises:
        BadData: features without patches, or of several sites and no name.
        ShapeMismatch: masks or targets that do not fit.

    Example:
        >>> features = collect(model, images, "blocks.1.hook_resid_post", tokens="patches")        # doctest: +SKIP
        >>> probe_patches(features).grid().shape                                                   # doctest: +SKIP
        (8, 8)
    """
    if name is None:
        if len(features) != 1:
            raise BadData(f"{len(features)} sets of features: name one of {', '.join(list(features)[:4])}.")
        name = next(iter(features))
    if not name.endswith(":patches") or features.grid is None:
        raise BadData(f"{name!r} has no row per patch: collect with tokens='patches'.")
    classes = np.asarray(features.target(target) if target is None or isinstance(target, str) else target)
    if len(classes) != features.n_images or kind_of(classes) != "classes":
        raise ShapeMismatch(
            f"the target is one class per image ({features.n_images} images), got {list(classes.shape)}."
        )
    down, across = features.grid
    if masks is not None and np.shape(masks) != (features.n_images, down, across):
        raise ShapeMismatch(
            f"masks are [image down across] = {[features.n_images, down, across]}, got {list(np.shape(masks))}."
        )
    split = split_images(classes, fractions, seed=seed) if split is None else split.within(features.n_images)
    if not len(split.test):
        raise BadData("the test part is empty: nobody judges.")
    fit = np.concatenate([split.train, split.validation])
    each = down * across
    x = features[name]
    probe = ClassProbe(weight_decay=weight_decay, seed=seed, **settings)
    probe.fit(rows_of(x, features.n_images, fit), np.repeat(classes[fit], each))
    p = probe.predict_proba(rows_of(x, features.n_images, split.test)).reshape(len(split.test), each, -1)
    wanted = classes[split.test]
    known = np.isin(wanted, probe.classes_)
    place = np.searchsorted(probe.classes_, wanted).clip(max=len(probe.classes_) - 1)
    maps = np.where(known[:, None], p[np.arange(len(p)), :, place], 0.0)
    correct = (probe.classes_[p.argmax(-1)] == wanted[:, None]).astype(float)
    more = {"resamples": resamples, "seed": seed}
    at = bootstrap(correct.T, **more)
    table = pl.DataFrame(
        {
            "row": np.repeat(np.arange(down), across), "column": np.tile(np.arange(across), down),
            "accuracy": at.effect, "accuracy_low": at.low, "accuracy_high": at.high,
            "mean_probability": maps.mean(0), "n": at.n,
        }
    )  # fmt: skip
    tables = {"places": table}
    if masks is not None:
        inside = np.asarray(masks, bool)[split.test].reshape(len(maps), -1)
        tables["object"] = _against_masks(maps, inside, (down, across), more)
    counts = np.unique(classes[fit], return_counts=True)[1]
    whole = bootstrap(correct.mean(1)[None], **more)
    facts = {
        "accuracy": float(whole.effect[0]), "accuracy_low": float(whole.low[0]), "accuracy_high": float(whole.high[0]),
        "chance": float(counts.max() / counts.sum()), "train": len(fit), "test": len(maps), "seed": seed,
        "features": name,
    }  # fmt: skip
    known_of = features.provenance
    return PatchProbe(
        title=f"Where {target if isinstance(target, str) else 'the label'} can be read: {name}",
        tables=tables,
        arrays={
            "maps": maps.reshape(-1, down, across), "test": split.test, "weights": probe.coef_,
            "bias": probe.intercept_,
        },
        facts=facts,
        words=WORDS,
        caveats=CAVEATS,
        provenance={**provenance(seed=seed), **{key: known_of[key] for key in ("model", "data") if key in known_of}},
    )  # fmt: skip


def _against_masks(maps: np.ndarray, inside: np.ndarray, grid: tuple[int, int], more: dict[str, int]) -> pl.DataFrame:
    """AUROC of the maps per image, of the distance to the centre, and of the mean map of the other images."""
    down, across = np.meshgrid(*(np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in grid), indexing="ij")
    centre = np.broadcast_to(-np.hypot(down, across).ravel(), maps.shape)
    others = (maps.sum(0) - maps) / max(len(maps) - 1, 1)
    mine = _auroc(maps, inside)
    rows = []
    for word, values in (("probe", maps), ("centre", centre), ("mean map of other images", others)):
        scores = _auroc(values, inside)
        found, gap = bootstrap(scores[None], **more), paired_difference(mine, scores, **more)
        rows.append(
            {
                "map": word, "auroc": float(found.effect[0]), "auroc_low": float(found.low[0]),
                "auroc_high": float(found.high[0]), "above": float(gap.effect[0]), "above_low": float(gap.low[0]),
                "above_high": float(gap.high[0]), "n": int(found.n[0]), "excluded": int(found.excluded[0]),
            }
        )  # fmt: skip
    return pl.DataFrame(rows)


def _auroc(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Per image; NaN where nothing or everything is inside."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=1)
    n_in, n_out = inside.sum(1), (~inside).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * inside).sum(1) - n_in * (n_in + 1) / 2) / np.where(n_in * n_out > 0, n_in * n_out, np.nan)
