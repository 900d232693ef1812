"""Zero-shot segmentation by neurons: where are the neurons active that write towards a text?

1. Of all neurons of some layers, take the `neurons` with the largest |r_n . t| (the absolute value: a neuron that
   writes against the text knows about it too; **C**: 200 of layers 8 to 10 of ViT-B/32).
2. Their mean activation on every patch is the map, scaled to [0, 1] per image; foreground above 0.5 (**C**).
3. Judged against masks beside maps that know nothing of the text: as many random neurons, all neurons, and the distance
   from the middle of the image. On images with one object in the middle, the last is hard to beat. And beside the map
   minus the mean map of all texts (**X**): many neurons are active on all textures, whatever the text. And beside the
   exact second-order effect of *all* neurons of these layers on the text (less the mean of the texts), by source token
   (**X**): an activation is not yet a contribution.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from mechvis.store.forward import reader
from probes.second_order.effects import contribution_maps
from probes.second_order.rank_one import RankOne

NEURONS = 200
THRESHOLD = 0.5


def neurons_for(
    fitted: Sequence[RankOne], text: Float[np.ndarray, " d_out"], *, neurons: int = NEURONS, signed: bool = False
) -> list[tuple[int, int]]:
    """(layer, neuron) of the neurons whose direction has the largest |r_n . t|, largest first.

    Args:
        fitted: directions of one or more layers, in the space of the text.
        text: one text's embedding.
        neurons: how many (**C**: 200).
        signed: by r_n . t instead.

    Raises:
        ShapeMismatch: text and directions are in different spaces.
        OutOfRange: more neurons than there are.
    """
    places = [(one.layer, int(neuron)) for one in fitted for neuron in one.neurons]
    directions = np.concatenate([one.direction for one in fitted])
    if np.shape(text) != (directions.shape[1],):
        raise ShapeMismatch(f"a text of {np.shape(text)}, directions of {directions.shape[1]}: use of='embedding'.")
    if not 1 <= neurons <= len(places):
        raise OutOfRange(f"neurons={neurons}: there are {len(places)} in these layers.")
    score = directions @ np.asarray(text, dtype=np.float64)
    order = np.argsort(-(score if signed else np.abs(score)), kind="stable")[:neurons]
    return [places[i] for i in order]


def activation_maps(
    model: Any, images: Any, sets: Sequence[Sequence[tuple[int, int]]], *, batch_size: int = 32
) -> Float[np.ndarray, "set image down across"]:
    """Mean activation of sets of neurons on every patch, as it is; :func:`scaled` brings it to [0, 1].

    Args:
        sets: lists of (layer, neuron).

    Raises:
        BadData: an empty set.
    """
    if not len(sets) or not all(len(one) for one in sets):
        raise BadData("a set of neurons is empty.")
    parts, pixels = model.parts, reader(model, images)
    prefix = len(parts.prefix)
    layers = sorted({layer for one in sets for layer, _ in one})
    weight = {layer: np.zeros((parts.blocks[layer].d_mlp, len(sets)), np.float32) for layer in layers}
    for place, one in enumerate(sets):
        for layer, neuron in one:
            weight[layer][neuron, place] += 1 / len(one)
    sites = [f"blocks.{layer}.mlp.hook_post" for layer in layers]
    found = []
    for start in range(0, len(images), batch_size):
        batch = pixels(np.arange(start, min(start + batch_size, len(images))))
        cache = model.run(batch.to(model.device, model.dtype), capture=sites, stop_when_captured=True).cache
        total = sum(
            cache[site][:, prefix:] @ torch.from_numpy(weight[layer]).to(model.device, model.dtype)
            for site, layer in zip(sites, layers, strict=True)
        )
        found.append(total.unflatten(1, parts.grid).float().cpu().numpy())
    return np.moveaxis(np.concatenate(found), -1, 0)


def scaled(maps: Float[np.ndarray, "*set image down across"]) -> Float[np.ndarray, "*set image down across"]:
    """Each map to [0, 1] by its own least and largest value; a constant map to 0."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return np.where(high > low, (maps - low) / np.where(high > low, high - low, 1), 0.0)


def segment(
    model: Any,
    images: Any,
    fitted: Sequence[RankOne],
    texts: Float[np.ndarray, "class d_out"],
    *,
    targets: Literal["label", "predicted"] = "predicted",
    neurons: int = NEURONS,
    threshold: float = THRESHOLD,
    draws: int = 5,
    batch_size: int = 32,
    seed: int = 0,
) -> Record:
    """Segment the object of every image by the neurons of its class, and judge the maps against the masks.

    Args:
        model: a wrapped classifier whose classes are the texts (for CLIP: `clip.classifier(names)`).
        images: with masks; with labels for `targets="label"`.
        fitted: directions of the neurons, on other images, in the space of the texts.
        texts: one embedding per class, in the model's order of classes.
        targets: the class of an image: the one that the model predicts (as the protocol has it), or its label.
        neurons: neurons per class.
        threshold: foreground above this (**C**: 0.5 after scaling to [0, 1]).
        draws: random sets of neurons for the control.
        batch_size: images per forward pass.
        seed: of the draws and the bootstrap.

    Returns:
        Record: per map AUROC and average precision over pixels, per image (mean, 95 % interval), and pixel accuracy and
        mean IoU of foreground and background, pooled over images; the maps of the neurons are in `arrays["maps"]`.

    Raises:
        BadData: no masks, or masks without an object.
        UnknownName: no such targets.
        ShapeMismatch, OutOfRange: see :func:`neurons_for`.
    """
    if targets not in ("label", "predicted"):
        raise unknown("targets", targets, ("label", "predicted"))
    masks = images.masks_for(model.preprocess).numpy()
    whole = masks.reshape(len(masks), -1)
    if not (whole.any(1) & ~whole.all(1)).all():
        raise BadData("a mask is empty or covers the whole image; there is nothing to tell apart. Leave it out.")
    classes = _classes(model, images, targets, batch_size)
    if classes.max() >= len(texts):
        raise ShapeMismatch(f"class {int(classes.max())} has no text: {len(texts)} texts.")
    every = [(one.layer, int(neuron)) for one in fitted for neuron in one.neurons]
    generator = np.random.default_rng(seed)
    used = np.unique(classes)
    sets = [neurons_for(fitted, texts[k], neurons=neurons) for k in used]
    signed = [neurons_for(fitted, texts[k], neurons=neurons, signed=True) for k in used]
    shuffled = [[every[i] for i in generator.choice(len(every), neurons, replace=False)] for _ in range(draws)]
    raw = activation_maps(model, images, [*sets, *signed, *shuffled, every], batch_size=batch_size)
    maps = scaled(raw)
    place, rows = np.searchsorted(used, classes), np.arange(len(images))
    kinds = {
        "neurons of the text": [maps[place, rows]],
        "neurons of the text, signed": [maps[len(used) + place, rows]],
        "neurons of the text, minus all texts": [scaled(raw[place, rows] - raw[: len(used)].mean(0))],
        "exact effects of all neurons": [_exact(model, images, fitted, texts, classes, batch_size)],
        "neurons of another text": [maps[(place + 1) % len(used), rows]],
        "random neurons": list(maps[2 * len(used) : 2 * len(used) + draws]),
        "all neurons": [maps[-1]],
        "middle of the image": [np.broadcast_to(_middle(maps.shape[2:]), maps.shape[1:])],
    }
    if len(used) == 1:  # there is no other text to compare with
        del kinds["neurons of another text"], kinds["neurons of the text, minus all texts"]
    table = [_judged(name, some, masks, threshold, seed) for name, some in kinds.items()]
    return Record(
        kind="second_order_segmentation",
        title="Segmentation by neurons that write towards a text",
        tables={"maps": pl.DataFrame(table)},
        arrays={"maps": kinds["neurons of the text"][0].astype(np.float32), "classes": classes},
        facts={"neurons": neurons, "threshold": threshold, "targets": targets, "draws": draws},
        words={
            "auroc": "chance that a pixel of the object is higher on the map than one of the rest, mean over images",
            "ap": "average precision over the pixels of an image, mean over images",
            "pixel_accuracy": "share of pixels on the right side of the threshold, all images together",
            "miou": "mean of the IoU of foreground and of background, all images together",
        },
        caveats=(
            "The middle of the image, all neurons and neurons of another text know nothing of the class asked for.",
        ),
        provenance=provenance(model=model, images=images, seed=seed),
    )


def _classes(model: Any, images: Any, targets: str, batch_size: int) -> Int[np.ndarray, " image"]:
    if targets == "label":
        from mechvis.labels import with_model_classes

        return with_model_classes(images, model).label_tensor.numpy()
    starts = range(0, len(images), batch_size)
    return np.concatenate([model.run(images[i : i + batch_size]).logits.argmax(1).cpu().numpy() for i in starts])


def _exact(
    model: Any, images: Any, fitted: Sequence[RankOne], texts: np.ndarray, classes: np.ndarray, batch_size: int
) -> Float[np.ndarray, "image down across"]:
    """Second-order effects on each image's text by source patch, all layers together."""
    toward = (texts - texts.mean(0))[classes]
    of = "embedding" if model.parts.project is not None else "pooled"
    layers = sorted({one.layer for one in fitted})
    maps = sum(contribution_maps(model, images, layer, toward, of=of, batch_size=batch_size) for layer in layers)
    return scaled(maps[:, len(model.parts.prefix) :].reshape(len(maps), *model.parts.grid))


def _middle(grid: tuple[int, int]) -> Float[np.ndarray, "down across"]:
    """1 in the middle, 0 in the corners."""
    down, across = (np.linspace(-1, 1, n) for n in grid)
    distance = np.hypot(*np.meshgrid(down, across, indexing="ij"))
    return 1 - distance / distance.max()


def _judged(
    name: str,
    some: Sequence[Float[np.ndarray, "image down across"]],
    masks: Bool[np.ndarray, "image height width"],
    threshold: float,
    seed: int,
) -> dict[str, Any]:
    """One row: the mean over several maps of one kind (random draws)."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    auroc, ap, accuracy, miou = [], [], [], []
    for maps in some:
        tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float64))[:, None]
        large = F.interpolate(tensor, size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0].numpy()
        pairs = list(zip(masks.reshape(len(masks), -1), large.reshape(len(masks), -1), strict=True))
        auroc.append([roc_auc_score(mask, value) for mask, value in pairs])
        ap.append([average_precision_score(mask, value) for mask, value in pairs])
        said = large > threshold
        accuracy.append((said == masks).mean())
        inside = (said & masks).sum() / (said | masks).sum()
        outside = (~said & ~masks).sum() / (~said | ~masks).sum()
        miou.append((inside + outside) / 2)
    sure = bootstrap(np.mean(auroc, axis=0), seed=seed)
    precise = bootstrap(np.mean(ap, axis=0), seed=seed)
    return (
        {"map": name, "auroc": sure.effect[0], "low": sure.low[0], "high": sure.high[0]}
        | {"ap": precise.effect[0], "ap_low": precise.low[0], "ap_high": precise.high[0]}
        | {"pixel_accuracy": float(np.mean(accuracy)), "miou": float(np.mean(miou)), "n": len(masks)}
    )
