"""What a sweep is about, settled before anything is computed: units, metrics, references, sources, groups of patches.

Every kind of sweep (full, screened, certified) starts from :func:`prepare`, so that all of them mean the same by their
arguments and refuse the same mistakes.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis import metrics as metric_functions
from mechvis import patches
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.engine import Job
from mechvis.errors import BadData, ShapeMismatch, SplitOverlap, unknown
from mechvis.labels import with_model_classes
from mechvis.means import Means, means
from mechvis.patches import Groups
from mechvis.units import Unit, units_of
from mechvis.wave import PerImage, Replacement

logger = logging.getLogger(__name__)

EDITS = ("zero", "mean", "mean_positional", "resample", "patch")
REFERENCE_SHARE = 1 / 3

Part = range | np.ndarray
"""Positions of some images."""

Target = str | int | tuple[str | int, str | int]
"""A class by name or index, or a pair of target and contrast."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What is settled before anything is computed; every kind of sweep starts from here."""

    model: Any
    """A wrapped model."""
    images: Any
    """The images to evaluate (without those that were set aside as reference)."""
    units: Sequence[Unit]
    """What to ablate, sorted by layer."""
    metrics: Sequence[tuple[str, Callable]]
    """Name and function of each metric; the first is the one that decides where one has to."""
    edit: str
    """One of `EDITS`."""
    labels: Tensor | None
    """Label of each image, or None to measure against the predicted classes."""
    means: Means | None
    """For the edits by means."""
    pixels: Callable[[Part], Tensor]
    """Reads some images."""
    source: Callable[[Part], Tensor] | None
    """For resample and patch: the images whose activations are put in."""
    settings: dict[str, Any]
    """What was asked for, as JSON can hold it."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """Metric -> the class it is about, where classes were given."""
    groups: Groups | None = None
    """For `patches`: what the units are."""

    @property
    def kinds(self) -> list[str]:
        """Kinds of the units."""
        return sorted({unit.kind for unit in self.units})

    @property
    def title(self) -> str:
        """What is done, in words."""
        return f"{self.edit} ablation of {', '.join(self.kinds)}"

    def job(
        self, units: Sequence[Unit] | None = None, order: np.ndarray | None = None, plan: dict[str, Any] | None = None
    ) -> Job:
        """What the engine is to compute.

        Args:
            units: some of the units, sorted by layer; default: all.
            order: positions of the images to use, in this order; default: all.
            plan: what identifies the job in its ledger.
        """
        units = self.units if units is None else units

        def at(part: range) -> Part:
            return part if order is None else order[part.start : part.stop]

        def measure(clean: Tensor, edited: Tensor, part: range) -> dict[str, Tensor]:
            clean, edited = clean[0], edited[:, 0]
            target, contrast = self.classes(clean, at(part))
            found = {}
            for name, function in self.metrics:
                before = function(clean, target, contrast, clean)
                found[f"clean/{name}"] = before
                found[name] = before - function(edited, target, contrast, clean)
            return found

        foreign = self.edit in ("resample", "patch")
        return Job(
            model=self.model,
            n_images=len(self.images) if order is None else len(order),
            views=lambda part: self.pixels(at(part))[None],
            units=units,
            replace=lambda views, part: self.replacement(units, at(part)),
            measure=measure,
            plan=plan,
            bytes_per_image=_captured_bytes(self.model, units) if foreign else 0,
        )

    def classes(self, clean: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Target and contrast class of some images, by their clean logits `[image class]`."""
        given = None if self.labels is None else self.labels[_index(part)]
        return metric_functions.classes_of(clean, given)

    def replacement(self, units: Sequence[Unit], part: Part) -> Replacement:
        """What takes the place of the units' activations on some images."""
        values = self._values(units, part)
        if self.groups is None or not self.groups.per_image:
            return values
        members = self.groups.members[_index(part)]
        return PerImage(values, lambda unit: members[:, unit.index])

    def _values(self, units: Sequence[Unit], part: Part) -> Replacement:
        if self.edit == "zero":
            return lambda site: None
        if self.means is not None:
            values = self.means
            if self.edit == "mean":
                return lambda site: values[site].mean(0, keepdim=True).expand_as(values[site])[None]
            return lambda site: values[site][None]
        pixels = self.source(part).to(self.model.device, self.model.dtype)
        return self.model.run(pixels, capture=sorted({unit.site for unit in units})).cache.__getitem__

    @property
    def parts(self) -> Any:
        """The model's parts at the size of the images."""
        size = self.images.shape[2:] if isinstance(self.images, Tensor) else self.model.parts.image_size
        return self.model.parts.at_size(tuple(size))

    def image_table(self) -> Any:
        """One row per image, with the tokens of each group where they differ from image to image."""
        import polars as pl

        table = image_table(self.images)
        if self.groups is None or not self.groups.per_image:
            return table
        found = [[self.groups.tokens(i, image) for i in range(len(self.groups))] for image in range(len(self.images))]
        return table.with_columns(pl.Series(patches.COLUMN, found, dtype=pl.List(pl.List(pl.Int32))))

    def plan(self) -> dict[str, Any]:
        """What identifies the sweep in a ledger."""
        return {
            "model": self.model.fingerprint,
            "data": _identity(self.images),
            "n": len(self.images),
            **self.settings,
        }

    def provenance(self, **more: Any) -> dict:
        """Where the result comes from."""
        from mechvis.provenance import provenance

        facts = {**self.settings, "units": len(self.units), "reference_images": getattr(self.means, "n", None)}
        if (where := patches.where(self.units, self.groups, self.parts)) is not None:
            facts["patches"] = where
        images = self.images if isinstance(self.images, ImageSet) else None
        return provenance(model=self.model, images=images, seed=self.settings["seed"], sweep=facts, **more)


def prepare(
    model: Any,
    images: Any,
    *,
    units: str | Sequence[Unit],
    edit: str,
    metric: str | Callable | Sequence[str | Callable],
    labels: str | None,
    reference: Any,
    source: Any,
    layers: Iterable[int] | None,
    engine: str,
    seed: int,
    allow_overlap: bool,
    targets: Target | Sequence[Target] | None = None,
    groups: Any = None,
) -> Prepared:
    """Check and settle the arguments of :func:`mechvis.sweep`; the errors are those listed there."""
    if edit not in EDITS:
        raise unknown("edit", edit, EDITS)
    if model.parts.head is None:
        raise BadData("a sweep measures logits, and this model has no head. For CLIP: clip.classifier(class_names).")
    chosen = [metric_functions.get(m) for m in ([metric] if isinstance(metric, str) or callable(metric) else metric)]
    if not chosen:
        raise BadData("a sweep needs at least one metric.")
    if len(images) == 0:
        raise BadData("a sweep needs at least one image.")
    identities = [_metric_identity(name, function) for name, function in chosen]
    about: dict[str, str] = {}
    if targets is not None:
        if labels is not None:
            raise BadData("targets= and labels= both say what to measure against; pass one of them.")
        labels = "predicted"
        chosen, identities, about = _by_target(chosen, _targets(model, targets))
    known_groups = None
    if groups is not None and isinstance(units, str) and units == "patches":
        known_groups = patches.patch_groups(model, images, groups)
        groups = known_groups
    listed = units_of(model, units, layers, groups)
    if isinstance(images, ImageSet) and labels != "predicted":
        images = with_model_classes(images, model)
    n_given = len(images)
    reference, images, kept = _reference(edit, reference, images, seed, allow_overlap)
    if known_groups is not None and len(kept) < n_given:
        known_groups = known_groups[kept]
    label_tensor = _labels(images, labels)
    return Prepared(
        model=model,
        images=images,
        units=listed,
        metrics=chosen,
        edit=edit,
        labels=label_tensor,
        means=_means_of(model, reference, listed) if edit in ("mean", "mean_positional") else None,
        pixels=_reader(model, images),
        source=_sources(model, edit, images, source, seed),
        settings={
            "units": [f"{unit.kind} {unit.name}" for unit in listed],
            "edit": edit,
            "metrics": identities,
            "seed": seed,
            "labels": "targets" if targets is not None else "given" if label_tensor is not None else "predicted",
            "engine": engine,
            "reference": _identity(reference),
            "source": _identity(source),
            # Units in a list carry their tokens; those of no group stay as earlier versions wrote them.
            **(
                {"groups": _groups_identity(listed, known_groups)}
                if "patches" in {unit.kind for unit in listed}
                else {}
            ),
        },
        targets=about,
        groups=known_groups,
    )


def _targets(model: Any, targets: Target | Sequence[Target]) -> list[tuple[str, int, int | None]]:
    """Name, class index and contrast of each target.

    A tuple of two is a pair; several targets come in a list.
    """
    known = tuple(model.parts.class_names)

    def index(given: Any) -> int:
        if isinstance(given, bool) or not isinstance(given, str | int | np.integer):
            raise BadData(f"a target is the name or index of a class, or a pair (target, contrast); got {given!r}.")
        if isinstance(given, str) and not known:
            raise BadData(f"target {given!r}: this model's classes have no names; give indices.")
        return int(model.class_index(given if isinstance(given, str) else int(given)))

    found = []
    for target in [targets] if isinstance(targets, str | int | tuple) else list(targets):
        pair = target if isinstance(target, tuple) else (target,)
        if len(pair) not in (1, 2):
            raise BadData(
                f"a target is one class, or a pair (target, contrast); got {target!r}. Put several in a list."
            )
        chosen = [index(given) for given in pair]
        if len(set(chosen)) != len(chosen):
            raise BadData(f"target and contrast are the same class: {target!r}.")
        names = [known[i] if known else str(i) for i in chosen]
        found.append((" vs ".join(names), chosen[0], chosen[1] if len(chosen) == 2 else None))
    if not found:
        raise BadData("targets=[] names no class; leave it out to measure against labels or predictions.")
    if len({target[1:] for target in found}) != len(found) or len({target[0] for target in found}) != len(found):
        raise BadData(f"a target is listed twice, or two have one name: {[target[0] for target in found]}.")
    return found


def _by_target(
    chosen: Sequence[tuple[str, Callable]], targets: Sequence[tuple[str, int, int | None]]
) -> tuple[list[tuple[str, Callable]], list[str], dict[str, str]]:
    """Metrics for each target, what identifies them, and which class each is about."""
    split, identities, about = [], [], {}
    for name, function in chosen:
        identity = _metric_identity(name, function)
        if function in [metric_functions.METRICS[free] for free in metric_functions.WITHOUT_TARGET]:
            split.append((name, function))
            identities.append(identity)
            continue
        for title, target, contrast in targets:
            split.append((f"{name}[{title}]", metric_functions.for_target(function, target, contrast)))
            identities.append(f"{identity} {target} {contrast}")
            about[f"{name}[{title}]"] = title
    return split, identities, about


def _captured_bytes(model: Any, listed: Sequence[Unit]) -> int:
    """Activations of one image at all sites of the units."""
    sizes = (model.graph[site].sizes for site in {unit.site for unit in listed})
    return sum(prod(size for size in axes if size) for axes in sizes) * torch.finfo(model.dtype).bits // 8


def _index(part: Part) -> slice | Tensor:
    return slice(part.start, part.stop) if isinstance(part, range) else torch.as_tensor(part)


def _reader(model: Any, images: Any) -> Callable[[Part], Tensor]:
    """Pixels of some images, read when needed."""
    if isinstance(images, ImageSet):
        if model.preprocess is None:
            raise BadData("this model has no image preprocessing; pass preprocess= to mechvis.load, or pixels.")
        return lambda part: images[_index(part)].pixels_for(model.preprocess)
    if not isinstance(images, Tensor):
        raise BadData(
            f"images must be an ImageSet or pixels [image channel height width], got {type(images).__name__}."
        )
    return lambda part: images[_index(part)]


def _labels(images: Any, labels: str | None) -> Tensor | None:
    known = getattr(images, "labels", None)
    if labels not in (None, "given", "predicted"):
        raise unknown("labels", labels, ("given", "predicted"))
    if labels == "given" and known is None:
        raise BadData("labels='given', but the images have no labels.")
    return images.label_tensor if known is not None and labels != "predicted" else None


def _reference(
    edit: str, reference: Any, images: Any, seed: int, allow_overlap: bool
) -> tuple[Any, Any, Sequence[int]]:
    """Reference images and images to evaluate, disjoint, and which of the given ones the latter are."""
    if edit not in ("mean", "mean_positional"):
        return None, images, range(len(images))
    if reference is None:
        n_reference = max(1, round(len(images) * REFERENCE_SHARE))
        if len(images) < 3:
            raise BadData(
                f"edit={edit!r} needs reference images for the means, and {len(images)} image(s) are too few to set "
                "some aside. Pass reference=."
            )
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
        first, rest = sorted(order[:n_reference]), sorted(order[n_reference:])
        logger.info("%d of %d images are set aside as reference for the means.", n_reference, len(images))
        return images[first], images[rest], rest
    if not allow_overlap:
        if isinstance(reference, ImageSet) and isinstance(images, ImageSet):
            refuse_overlap(reference, images, what="reference and evaluation images")
        if isinstance(reference, Tensor) and isinstance(images, Tensor):
            shared = {_digest(image) for image in reference} & {_digest(image) for image in images}
            if shared:
                raise SplitOverlap(
                    f"reference and evaluation images must not share images: {len(shared)} in both. "
                    "Use disjoint images, or allow_overlap=True if you know why."
                )
        if isinstance(reference, Means) and isinstance(images, ImageSet) and reference.ids & set(images.ids):
            raise SplitOverlap(
                f"{len(reference.ids & set(images.ids))} of the images were used for the reference means. "
                "Use disjoint images, or allow_overlap=True if you know why."
            )
    return reference, images, range(len(images))


def _groups_identity(listed: Sequence[Unit], groups: Groups | None) -> str:
    """Hash of what the groups of patches are: their names do not say it."""
    if groups is not None:
        return groups.fingerprint
    return hashlib.sha256(repr([unit.tokens for unit in listed]).encode()).hexdigest()[:16]


def _means_of(model: Any, reference: Any, listed: Sequence[Unit]) -> Means:
    sites = sorted({unit.site for unit in listed})
    if isinstance(reference, Means):
        for site in sites:
            _ = reference[site]
        return reference
    return means(model, reference, sites)


def _sources(model: Any, edit: str, images: Any, source: Any, seed: int) -> Callable[[Part], Tensor] | None:
    """For resample and patch: the images whose activations are put in."""
    if edit == "patch":
        if source is None or len(source) != len(images):
            raise ShapeMismatch(
                f"edit='patch' needs source= images aligned one to one with the {len(images)} images, got "
                f"{'none' if source is None else len(source)}."
            )
        return _reader(model, source)
    if edit == "resample":
        if len(images) < 2:
            raise BadData("edit='resample' needs at least two images.")
        # A cyclic shift of a random order: every image gets another one, and each is used once.
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        if isinstance(images, ImageSet):
            return lambda part: images[other[_index(part)].numpy()].pixels_for(model.preprocess)
        return lambda part: images[other[_index(part)]]
    return None


def _identity(images: Any) -> str | None:
    """Hash of an image set, of means (that of their images), or of pixels."""
    if images is None or isinstance(images, ImageSet):
        return None if images is None else images.fingerprint
    if isinstance(images, Means):
        return images.data
    return _digest(images)


def _digest(pixels: Tensor) -> str:
    """Hash of a tensor: type, shape and bytes (numpy has no bfloat16, so as bytes)."""
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}".encode())
    digest.update(pixels.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _metric_identity(name: str, function: Callable) -> str:
    """Name of a metric; of a function that is not ours also a hash of its code, which may change under one name."""
    if metric_functions.METRICS.get(name) is function:
        return name
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    # Other constants (inner functions, sets) print differently in every process.
    constants = [constant for constant in code.co_consts if isinstance(constant, int | float | str)]
    return f"{name} {hashlib.sha256(code.co_code + repr(constants).encode()).hexdigest()[:8]}"


def image_table(images: Any) -> Any:
    """One row per image: `id`, and `label` and `group` where they are known."""
    import polars as pl

    if not isinstance(images, ImageSet):
        return pl.DataFrame({"id": [f"image {i}" for i in range(len(images))]})
    columns: dict[str, Any] = {"id": list(images.ids)}
    if images.labels is not None:
        names = images.class_names
        columns["label"] = [names[i] if i < len(names) else str(i) for i in images.labels.tolist()]
    if images.groups is not None:
        columns["group"] = [str(group) for group in images.groups]
    return pl.DataFrame(columns)
