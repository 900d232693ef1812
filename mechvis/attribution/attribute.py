"""`mechvis.attribute`: which patches does a score come from, by any method, checked.

1. Settle the target from the clean run (`mechvis.target`).
2. Ask the method, batch by batch.
3. Check what came back: shape, finite, not the same number everywhere; for methods that claim completeness the gap
   between what maps add up to and what they should is in the table.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import torch
from einops import rearrange
from torch import Tensor

from mechvis.attribution.attribution import Attribution
from mechvis.attribution.method import Maps, Method
from mechvis.attribution.names import method as by_name
from mechvis.attribution.question import Question
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, FailedCheck, MechvisError, NotFinite, OutOfRange, ShapeMismatch
from mechvis.labels import with_model_classes
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.removal.game import Cost
from mechvis.target import Classes, Form, Target, target_of


def attribute(
    model: Any,
    images: Any,
    method: str | Method = "act_x_grad",
    *,
    target: Classes | Target = "predicted",
    contrast: Classes | None = None,
    form: Form | None = None,
    seed: int = 0,
    example_ids: Sequence[int] | None = None,
    batch_size: int = 32,
    rows_at_once: int = 256,
    progress: bool = True,
) -> Attribution:
    """Which patches a score comes from.

    Args:
        model: a wrapped vision model, or a `HookedCLIP` (then `target` is a text, or one text per image).
        images: an `ImageSet`, or pixels `[image channel height width]`.
        method: a method (`attribution.GradCam(layer=2)`), or its name for default settings.
        target: `"predicted"`, `"true"` (labels of the image set), a class, one class per image, or a
            :class:`mechvis.target.Target`.
        contrast: what is subtracted: `"runner_up"`, a class, or one per image.
        form: what is read: `logit`, `logit_diff`, `prob`, `logprob`; default by whether there is a contrast.
        seed: of methods that draw random numbers.
        example_ids: which example each image is, for draws that do not depend on the order; default 0, 1, ...
        batch_size: images that are explained together.
        rows_at_once: variants of images that go through the model together.
        progress: show a bar.

    Returns:
        Maps `[image down across]`, larger: more important for the target; a table with a row per image.

    Raises:
        UnknownName, BadData, BadImages, OutOfRange, ShapeMismatch, TrainMode: see :func:`mechvis.target.target_of`.
        FailedCheck: every map is the same number everywhere, or a gradient is zero by construction.
        NotFinite: NaN or Inf in a map; says where.

    Example:
        >>> found = mechvis.attribute(model, images, "grad_cam", contrast="runner_up")      # doctest: +SKIP
        >>> found.maps.shape                                                                # doctest: +SKIP
        (64, 8, 8)
    """
    chosen = by_name(method)
    chosen = chosen() if isinstance(chosen, type) else chosen
    if not isinstance(chosen, Method):
        raise BadData(f"method is a name or a method, got {type(chosen).__name__}.")
    model, target = vision_of(model, target)
    ids = _ids(images, example_ids)
    labels = labels_of(model, images)
    cost, started, found, rows = Cost(), time.perf_counter(), [], []
    if batch_size < 1 or rows_at_once < 1:
        raise OutOfRange(f"batch_size={batch_size}, rows_at_once={rows_at_once}: give at least 1.")
    with track(len(images), f"attribution by {chosen.NAME}", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            pixels = model.inputs(images[part])
            settled = settle(model, pixels, None if labels is None else labels[part], target, contrast, form, part)
            ask = Question(
                model=model,
                pixels=pixels,
                target=settled,
                ids=ids[part],
                seed=seed,
                batch_size=rows_at_once,
                cost=cost,
            )
            maps = checked(chosen.maps(ask), ask, start)
            found.append(maps)
            rows.append(_rows(ask, maps, start, labels))
            bar.update(len(pixels))
    seconds = time.perf_counter() - started
    table = pl.concat(rows)
    if isinstance(images, ImageSet):
        table = table.insert_column(1, pl.Series("id", list(images.ids)))
    return _record(model, images, chosen, found, table, cost, seconds, seed, settled)


def maps_of(method: Method, ask: Question) -> Tensor:
    """Maps `[image patch]` of one question, checked: what gates and metrics call."""
    return checked(method.maps(ask), ask, 0).values


def checked(maps: Maps, ask: Question, first: int) -> Maps:
    """The maps, if they have the right shape and are finite.

    Raises:
        ShapeMismatch, NotFinite.
    """
    expected = (len(ask.pixels), ask.n_patches)
    if tuple(maps.values.shape) != expected:
        raise ShapeMismatch(f"the method gave maps {list(maps.values.shape)}, not [image patch] = {list(expected)}.")
    bad = ~torch.isfinite(maps.values)
    if bool(bad.any()):
        image, patch = (int(place) for place in bad.nonzero()[0])
        raise NotFinite(f"the map of image {first + image} holds NaN or Inf, the first at patch {patch}.")
    return replace(maps, values=maps.values.detach())


def vision_of(model: Any, target: Any) -> tuple[Any, Any]:
    """The vision tower and the target; of a CLIP model with a zero-shot head over the texts of the target."""
    if not hasattr(model, "vision"):
        if model.parts.modality != "image":
            raise BadData("attributions are over patches of images; this is a text tower.")
        return model, target
    texts = [target] if isinstance(target, str) else list(target) if isinstance(target, (list, tuple)) else None
    if texts is None or "predicted" in texts or not all(isinstance(text, str) for text in texts):
        raise BadData(
            'with a CLIP model the target is a text (target="a star on grass"), or one per image; for classes pass '
            "clip.classifier(names)."
        )
    distinct = list(dict.fromkeys(texts))
    return model.classifier(distinct, ["{}"]), target


def _ids(images: Any, given: Sequence[int] | None) -> Tensor:
    if not len(images):
        raise BadData("no images to explain.")
    if given is None:
        return torch.arange(len(images))
    ids = torch.as_tensor(given)
    if ids.shape != (len(images),) or ids.is_floating_point():
        raise ShapeMismatch(f"example_ids are one whole number per image, got {ids.dtype} {list(ids.shape)}.")
    return ids


def labels_of(model: Any, images: Any) -> Tensor | None:
    """Labels of an image set in the model's classes; None where there are none, or they are not the model's."""
    if not isinstance(images, ImageSet) or images.labels is None:
        return None
    try:
        return with_model_classes(images, model).label_tensor
    except MechvisError:
        return None  # classes of the images are not the model's: there is no true class to explain


def settle(model: Any, pixels: Tensor, labels: Any, target: Any, contrast: Any, form: Any, part: slice) -> Target:
    if isinstance(target, Target):
        return target[part]
    with torch.no_grad():
        logits = model.run(pixels).output
    per_image = [
        given[part] if isinstance(given, (list, tuple)) or (isinstance(given, Tensor) and given.ndim) else given
        for given in (target, contrast)
    ]
    return target_of(model, logits, labels, per_image[0], contrast=per_image[1], form=form)


def _rows(ask: Question, maps: Maps, start: int, labels: Tensor | None) -> pl.DataFrame:
    names = ask.parts.class_names
    word: Callable[[int], str] = lambda index: names[index] if names else str(index)  # noqa: E731
    n = len(ask.pixels)
    sums = maps.values.double().sum(1)
    columns: dict[str, Any] = {
        "image": range(start, start + n),
        "target": [word(index) for index in ask.target.classes.tolist()],
        "contrast": [""] * n if ask.target.contrast is None else [word(i) for i in ask.target.contrast.tolist()],
        "label": [""] * n if labels is None else [word(int(i)) for i in labels[start : start + n]],
        "score": ask.scores().double().tolist(),
        "sum": sums.tolist(),
    }
    if maps.prefix is not None:
        columns["prefix"] = maps.prefix.double().sum(1).tolist()
    if maps.total is not None:
        prefix = 0 if maps.prefix is None else maps.prefix.double().sum(1)
        gap = (sums + prefix - maps.total.double()).abs() / maps.total.double().abs().clamp(min=1e-12)
        columns |= {"total": maps.total.double().tolist(), "gap": gap.tolist()}
    return pl.DataFrame(columns)


_WORDS = {
    "image": "place of the image in the set",
    "id": "name of the image",
    "target": "explained class",
    "contrast": "class whose logit is subtracted, if any",
    "label": "true class, where it is known",
    "score": "what is explained, of the clean image",
    "sum": "sum of the map over patches",
    "prefix": "what fell on prefix tokens (CLS, registers), which have no place in the map",
    "total": "what map and prefix should add up to",
    "gap": "|sum + prefix - total| / |total|",
}


def _record(
    model: Any,
    images: Any,
    method: Method,
    found: list[Maps],
    table: pl.DataFrame,
    cost: Cost,
    seconds: float,
    seed: int,
    target: Target,
) -> Attribution:
    values = torch.cat([one.values for one in found]).float().cpu()
    flat = values.max(1).values == values.min(1).values
    if bool(flat.all()):
        raise FailedCheck(
            f"every map of {method.NAME} is the same number everywhere: it says nothing. The target may not "
            "depend on the images, or the layer has no gradient."
        )
    claims, parts = method.CLAIMS, model.parts
    down = model._for_size(tuple(model.inputs(images[:1]).shape[2:]))[0].grid[0]
    extra = {name: torch.cat([one.extra[name] for one in found]).double().cpu().numpy() for name in found[0].extra}
    caveats = []
    if not claims.class_specific:
        caveats.append("The method does not look at the target: every class gets the same map.")
    if bool(flat.any()):
        caveats.append(f"{int(flat.sum())} of {len(flat)} maps are the same number everywhere.")
    if "gap" in table.columns:
        gap = float(table["gap"].median())
        caveats.append(f"Maps should add up to a difference of scores; the median gap is {gap:.2g} of it.")
    caveats.append("A map is a claim, not evidence: card() measures how far it can be believed.")
    return Attribution(
        title=f"{method.NAME} of {len(table)} images",
        tables={"images": table},
        arrays={"maps": rearrange(values, "i (d a) -> i d a", d=down).numpy()} | extra,
        facts={
            "method": method.NAME,
            "version": method.VERSION,
            "settings": method.settings(),
            "claims": {name: getattr(claims, name) for name in claims.__dataclass_fields__},
            "source": method.SOURCE,
            "seed": seed,
            "form": target.form,
            "target_rule": target.rule,
            "contrast_rule": target.contrast_rule,
            "flat_maps": int(flat.sum()),
            "prefix_tokens": list(parts.prefix),
            "forwards": cost.forwards,
            "backwards": cost.backwards,
            "seconds": seconds,
        },
        words={name: word for name, word in _WORDS.items() if name in table.columns},
        caveats=tuple(caveats),
        provenance=provenance(model, images if isinstance(images, ImageSet) else None, seed),
    )
