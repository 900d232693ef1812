"""The answer of every patch in every layer: where in the image, and from which layer on, something can be read.

Each patch of each layer is read alone by the model's own read-out. Kept are the top class, its probability, and the
probability of chosen classes (for CLIP also their cosine with the texts: it does not depend on the other texts). Where
object masks are known, the table says how well the target's map finds the object: AUROC of its probability against the
mask, over the patches of each image, beside a centre prior that does not look at the image.

Source: methods.md 3.3 (Vilas et al. 2023 **A**).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from einops import rearrange
from scipy.stats import rankdata

from mechvis.data.images import ImageSet
from mechvis.engine import free_memory
from mechvis.errors import BadData, OutOfMemory, OutOfRange, ResultMismatch, unknown
from mechvis.patches import patch_groups
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import RESAMPLES, bootstrap
from mechvis.store.rows import one_image
from probes.lenses.passes import Batches
from probes.lenses.read_out import cosines, final_scale, read_tokens, what_is_read
from probes.lenses.targets import targets_of, with_texts
from probes.lenses.tuned import TunedLens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block

What = Literal["probability", "cosine"]
_SHOWN = 4
_MOST_CLASSES = 64


class LensMaps(Record):
    """Read-outs per layer and patch, from :func:`lens_maps`.

    `arrays`: `answers` `[image layer down across]` (class index), `confidence` (its probability), `values`
    `[image layer class down across]` of the chosen classes, and `pictures` of the first images. The table has one row
    per layer.
    """

    KIND: ClassVar[str] = "lens_maps"

    def map_of(self, name: str) -> np.ndarray:
        """The maps of one class, `[image layer down across]`.

        Raises:
            UnknownName: a class that was not kept.
        """
        if name not in (kept := self.facts["classes kept"]):
            raise unknown("class of these maps", name, kept)
        return self.arrays["values"][:, :, kept.index(name)]

    def plot(self, images: Sequence[int] = (0, 1, 2, 3)) -> "Figure":
        """The answers over the first images.

        Raises:
            OutOfRange: an image whose picture was not kept.
        """
        from mechvis.plots.lens_map import lens_map

        pictures = self.arrays["pictures"]
        chosen = [i for i in images if i < len(pictures)] if tuple(images) == (0, 1, 2, 3) else list(images)
        for image in chosen:
            if not 0 <= image < len(pictures):
                raise OutOfRange(f"image {image} has no picture: the first {len(pictures)} were kept.")
        return lens_map(
            list(pictures[chosen]),
            self.arrays["answers"][chosen],
            np.clip(self.arrays["confidence"][chosen], 0, 1),
            self.facts["classes"],
            layer_names=self.facts["layer names"],
            captions=[self.facts["captions"][i] for i in chosen] if self.facts["captions"] else None,
            title=self.title,
        )

    def figures(self) -> "list[Block]":
        """The answers over the first images."""
        from mechvis.report.blocks import Figure

        if "pictures" not in self.arrays:
            return []
        return [Figure(self.plot(), caption="The class that each patch says, alone, in each layer.", raster=True)]


@torch.no_grad()
def lens_maps(
    model: Any,
    images: Any,
    *,
    sites: str | Sequence[str] = "blocks.*.hook_resid_post",
    classes: Sequence[str | int] | None = None,
    what: What = "probability",
    target: Any = None,
    statistics: Literal["layer", "final"] = "layer",
    tuned: TunedLens | None = None,
    texts: Sequence[str] | None = None,
    templates: Any = ("a photo of a {}",),
    seed: int = 0,
    resamples: int = RESAMPLES,
    budget: str | int | None = None,
    progress: bool = True,
    allow_overlap: bool = False,
) -> LensMaps:
    """Read every patch of every layer alone.

    Args:
        model: a wrapped image tower with a head, or a CLIP with `texts`.
        images: an `ImageSet` or pixels.
        sites: names or patterns; each is a layer of the maps.
        classes: whose maps to keep, by name or index; default: all, of more than 64 the images' targets.
        what: `probability`, or for a zero-shot head `cosine` with each text.
        target: whose maps are compared with the object masks: labels (default), a column, or one class per image.
        statistics: of the last norm, see :func:`probes.lenses.logit_lens`.
        tuned: read through this tuned lens (all of the sites must be in it, or be the last stream).
        texts: for CLIP: the classes.
        templates: for CLIP: prompts with {} for a class.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        budget: memory for a forward pass.
        progress: show a progress bar.
        allow_overlap: read images that the tuned lens was trained on.

    Returns:
        LensMaps: `.plot()` draws them.

    Raises:
        UnknownName, OutOfRange: a class or setting that does not exist.
        BadData: cosines of a head that has no texts, or so many classes that some must be named.
        OutOfMemory: the maps do not fit.
        ResultMismatch: a tuned lens of another model, or without a site.
        SplitOverlap: images that the tuned lens was trained on.

    Example:
        >>> maps = lens_maps(clip, images[:8], texts=["circle", "star"], what="cosine")        # doctest: +SKIP
        >>> maps.map_of("star").shape                                                          # doctest: +SKIP
        (8, 4, 8, 8)
    """
    if what not in ("probability", "cosine"):
        raise unknown("what", what, ("probability", "cosine"))
    if statistics not in ("layer", "final"):
        raise unknown("statistics", statistics, ("layer", "final"))
    model = with_texts(model, texts, templates)
    head = model.parts.head
    if what == "cosine" and not hasattr(head, "prompts"):
        raise BadData("what='cosine' needs texts: a zero-shot head. This head has logits; use 'probability'.")
    passes = Batches.over(model, images, sites, budget)
    parts, n_prefix = passes.parts, len(passes.parts.prefix)
    last = f"blocks.{len(parts.blocks) - 1}.hook_resid_post"
    if tuned is not None:
        tuned.check(model)
        if missing := [site for site in passes.sites if site not in (*tuned.sites, last)]:
            raise ResultMismatch(f"the tuned lens has no map for {missing[0]}; it has {list(tuned.sites)}.")
    found: dict[str, list[np.ndarray]] = {"answers": [], "confidence": [], "values": []}
    names = _names(model, model.run(one_image(model, images), check_finite=False).output.shape[-1])
    targets = targets_of(model, images, target, len(names))
    kept = _chosen(classes, names, targets)
    _check_memory(len(images) * len(passes.sites) * (parts.n_tokens - n_prefix) * len(kept))
    with track(len(images), "lens maps", " images", show=progress) as bar:
        for batch in passes:
            if tuned is not None and not allow_overlap:
                tuned.refuse_seen(batch.digests())
            scale = final_scale(model, batch.last) if statistics == "final" else None
            layers: dict[str, list[torch.Tensor]] = {name: [] for name in found}
            for site in passes.sites:
                x = batch.cache[site]
                x = x if tuned is None or site == last else tuned.translate(site, x)
                vectors = x[:, n_prefix:]
                each = None
                if scale is not None:
                    each = scale.expand(-1, x.shape[1], -1)[:, n_prefix:].flatten(0, 1)
                logits = read_tokens(model, vectors.flatten(0, 1), scale=each).unflatten(0, vectors.shape[:2])
                shares = logits.double().softmax(-1)
                top = shares.max(-1)
                layers["answers"].append(top.indices)
                layers["confidence"].append(top.values)
                layers["values"].append((cosines(head, logits) if what == "cosine" else shares)[..., kept])
            for name, values in layers.items():
                stacked = torch.stack(values, dim=1).cpu().numpy()
                found[name].append(stacked.astype(np.int32 if name == "answers" else np.float32))
            bar.update(len(batch.part))
    grid = {"down": parts.grid[0], "across": parts.grid[1]}
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    for name in ("answers", "confidence"):
        arrays[name] = rearrange(arrays[name], "image layer (down across) -> image layer down across", **grid)
    arrays["values"] = rearrange(arrays["values"], "i layer (down across) c -> i layer c down across", **grid)
    table = _table(model, images, passes.sites, arrays, targets, kept, resamples, seed)
    known = isinstance(images, ImageSet)
    if known and model.preprocess is not None:
        shown = model.preprocess.unnormalise(images[:_SHOWN].pixels_for(model.preprocess))
        colours = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
        if colours.shape[1] in (1, 3):
            arrays["pictures"] = rearrange(colours, "i channel h w -> i h w channel").cpu().numpy()
    captions = [] if targets is None else [names[int(i)] for i in targets[:_SHOWN]]
    return LensMaps(
        title=f"{'Tuned lens' if tuned is not None else 'Lens'} per patch on {model.title or model.parts.family}",
        tables={"layers": table},
        arrays=arrays,
        facts={
            "classes": names,
            "classes kept": [names[i] for i in kept],
            "what": what,
            "statistics": statistics,
            "sites": list(passes.sites),
            "layer names": [_short(site) for site in passes.sites],
            "captions": captions,
            "what is read": what_is_read(model),
        },
        words={
            "confidence": "mean probability of each patch's top class",
            "agreement": "share of the patches whose top class is the target",
            "auroc": "area under the ROC curve of the target's map against the object mask, mean over images",
            "centre_auroc": "the same for closeness to the middle of the image, which does not look at it",
        },
        caveats=(
            "Each patch is read alone, which the model itself never does; what a patch says late is what attention "
            "brought there, not only what it shows.",
        ),
        provenance=provenance(model=model, images=images if known else None, seed={"bootstrap": seed}),
    )


def _check_memory(numbers: int) -> None:
    if 8 * numbers > 0.7 * free_memory():
        raise OutOfMemory(
            f"the maps need {8 * numbers / 1e9:.1f} GB and {free_memory() / 1e9:.1f} GB are free: give fewer images, "
            "sites or classes."
        )


def _names(model: Any, n: int) -> list[str]:
    names = list(model.parts.class_names)
    return names if len(names) == n else [f"class {i}" for i in range(n)]


def _chosen(classes: Sequence[str | int] | None, names: list[str], targets: torch.Tensor | None = None) -> list[int]:
    if classes is None:
        if len(names) <= _MOST_CLASSES:
            return list(range(len(names)))
        if targets is None or len(targets.unique()) > _MOST_CLASSES:
            raise BadData(f"maps of {len(names)} classes are too many to keep: name those you want with classes=.")
        return targets.unique().tolist()
    if isinstance(classes, str) or not len(classes):
        raise BadData(f"classes={classes!r}: give a list of names or indices, at least one.")
    chosen = []
    for entry in classes:
        if isinstance(entry, str):
            if entry not in names:
                raise unknown("class", entry, names)
            entry = names.index(entry)
        if not 0 <= entry < len(names):
            raise OutOfRange(f"class {entry}: the head has {len(names)} (0 to {len(names) - 1}).")
        chosen.append(int(entry))
    return chosen


def _short(site: str) -> str:
    layer, _, name = site.removeprefix("blocks.").partition(".")
    return f"layer {layer}" if name == "hook_resid_post" else site.removeprefix("blocks.")


def _table(
    model: Any,
    images: Any,
    sites: tuple[str, ...],
    arrays: dict[str, np.ndarray],
    targets: torch.Tensor | None,
    kept: list[int],
    resamples: int,
    seed: int,
) -> pl.DataFrame:
    options = {"resamples": resamples, "seed": seed}
    measured = {"confidence": arrays["confidence"].mean((2, 3)).T}
    if targets is not None:
        truth = targets.numpy()
        measured["agreement"] = (arrays["answers"] == truth[:, None, None, None]).mean((2, 3)).T
        masked = isinstance(images, ImageSet) and images.read_mask is not None
        if masked and set(truth.tolist()) <= set(kept):
            groups = patch_groups(model, images, "object")
            on = groups.members[:, groups.names.index("object"), groups.n_prefix :].numpy()
            own = arrays["values"][np.arange(len(truth)), :, [kept.index(t) for t in truth]]
            measured["auroc"] = np.stack([auroc(own[:, layer].reshape(len(on), -1), on) for layer in range(len(sites))])
            middle = -np.hypot(*(axis - axis.mean() for axis in np.indices(arrays["answers"].shape[2:]).astype(float)))
            centre = auroc(np.broadcast_to(middle.ravel(), on.shape), on)
            measured["centre_auroc"] = np.broadcast_to(centre, measured["auroc"].shape)
    columns: dict[str, Any] = {
        "site": list(sites),
        "layer": pl.Series([model.graph[site].layer for site in sites], dtype=pl.Int64),
        "n": np.full(len(sites), len(arrays["answers"])),
    }
    for name, values in measured.items():
        known = bootstrap(np.ascontiguousarray(values), **options)
        columns |= {name: known.effect, f"{name}_low": known.low, f"{name}_high": known.high}
    return pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def auroc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each row, ties at one half; NaN where a row has one kind only.

    Args:
        scores: `[image patch]`.
        truth: bool `[image patch]`.

    Example:
        >>> auroc(np.array([[0.1, 0.9, 0.5]]), np.array([[False, True, False]]))
        array([1.])
    """
    ranks = rankdata(scores, axis=1)
    positive = truth.sum(1)
    negative = truth.shape[1] - positive
    above = (ranks * truth).sum(1) - positive * (positive + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((positive > 0) & (negative > 0), above / (positive * negative), np.nan)
