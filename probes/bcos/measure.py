"""Is the student a good stand-in, and does its map point at the object?

1. Agreement with the teacher's class, and accuracy of both, by group.
2. Where maps of the student's predicted class put their positive part, beside the object's mask: share of it inside
   (energy), whether the strongest patch lies on the object (pointing), and AUROC of the map against the mask's pixels.
   Beside the exact contributions: gradient times input of the student and of the teacher; and maps that know nothing
   of any model: how far pixels are from grey, that objects are in the middle, a uniform map (its energy is the area).

A map that scores like one of the last three has found nothing: objects of scenes are near the centre and colourful, and
anything times the input inherits the input's size. Nor does a map have to point at the object: where a model reads the
background, an exact map says so.
"""

from typing import Any

import numpy as np
import polars as pl
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, ShapeMismatch, SplitOverlap
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap, paired_difference
from probes.bcos.align import Aligned
from probes.bcos.explain import contributions

MEASURES = ("energy", "pointing", "auroc")


def measure_student(aligned: Aligned, teacher: Any, images: ImageSet, *, batch_size: int = 64, seed: int = 0) -> Record:
    """Agreement, accuracy and where the exact map points, on images that the student was not trained on.

    Args:
        aligned: a trained student.
        teacher: its teacher, wrapped.
        images: labelled images with masks.
        batch_size: images per pass.
        seed: of the bootstrap.

    Returns:
        A record: table `answers` (`what group value low high n`), table `maps`
        (`map measure value low high n over_input over_input_low over_input_high`: the last three are differences from
        the teacher's gradient times input, paired by image).

    Raises:
        SplitOverlap: training images among the images.
        BadData: no labels or no masks.

    Example:
        >>> measure_student(align(student, teacher, train), teacher, other).tables["maps"]     # doctest: +SKIP
    """
    if shared := sorted(set(aligned.ids) & set(images.ids)):
        raise SplitOverlap(f"{len(shared)} images were used to train the student ({shared[0]} ...). Use others.")
    if images.labels is None or images.read_mask is None:
        raise BadData("measuring a student needs images with labels and object masks.")
    student = aligned.student
    pixels = images.pixels_for(teacher.preprocess).to(teacher.device, teacher.dtype)
    masks = images.masks_for(teacher.preprocess)
    with torch.no_grad():
        ours = torch.cat([student(part) for part in pixels.split(batch_size)])
        theirs = torch.cat([teacher.run(part).logits for part in pixels.split(batch_size)])
    classes = ours.argmax(1)
    exact = contributions(student, pixels, classes, batch_size=batch_size)
    maps = {
        "contributions": exact.pixels,
        "gradient x input, student": gradient_times_input(student, pixels, classes, batch_size),
        "gradient x input, teacher": gradient_times_input(teacher, pixels, theirs.argmax(1), batch_size),
        "size of the input": pixels.square().sum(1).sqrt(),
        "centre": _centre(masks.shape[1:]).expand(len(masks), -1, -1),
        "uniform": torch.ones(masks.shape),
    }
    found = {name: pointing(map_.double().cpu(), masks, student.shape.patch) for name, map_ in maps.items()}
    rows = []
    for name, scores in found.items():
        for measure in MEASURES:
            own, other = scores[measure], found["gradient x input, teacher"][measure]
            rows.append({"map": name, "measure": measure, **_interval(own, seed), **_over(own, other, seed)})
    labels = images.labels
    answers = {
        "agreement with the teacher": (classes == theirs.argmax(1)).cpu().numpy(),
        "accuracy of the student": classes.cpu().numpy() == labels,
        "accuracy of the teacher": theirs.argmax(1).cpu().numpy() == labels,
    }
    groups = ["all", *([] if images.groups is None else sorted(np.unique(images.groups).tolist()))]
    said = []
    for what, hit in answers.items():
        for group in groups:
            some = np.ones(len(hit), bool) if group == "all" else images.groups == group
            said.append({"what": what, "group": group, **_interval(hit[some].astype(float), seed)})
    special = exact.share_of_special.double().cpu().numpy()
    return Record(
        kind="bcos_student",
        title="A B-cos student beside its teacher",
        tables={"answers": pl.DataFrame(said), "maps": pl.DataFrame(rows)},
        arrays={"losses": aligned.losses, "special": special},
        facts={
            "completeness": exact.error,
            "share_of_special": float(special.mean()),
            "steps": len(aligned.losses),
            "last_losses": {
                name: float(v) for name, v in zip(aligned.terms, aligned.losses[-10:].mean(0), strict=True)
            },
        },
        words={
            "energy": "share of the map's positive part that lies on the object",
            "pointing": "share of images whose strongest patch is at least half object",
            "auroc": "chance that a random pixel of the object has a larger value than one of the background",
            "over_input": "difference from the teacher's gradient times input, paired by image",
            "completeness": "largest difference of sum and logit, relative to the largest sum of absolute terms",
            "share_of_special": "share of the absolute sums that class token and positions have, mean over images",
        },
        caveats=(
            "The map explains the student. It says something about the teacher as far as the two agree.",
            f"Class token and positions carry {float(special.mean()):.0%} of the absolute sums: no pixel shows it.",
        ),
        provenance=provenance(model=teacher, images=images, seed=seed),
    )


def pointing(
    maps: Float[Tensor, "image height width"], masks: Bool[Tensor, "image height width"], patch: tuple[int, int]
) -> dict[str, np.ndarray]:
    """How well maps find masks: `energy`, `pointing`, `auroc`, each per image in [0, 1].

    A map without a positive value has the energy of the mask's area. Ties count half in the AUROC; ties of the
    strongest patch count by the share of them that lies on the object.

    Args:
        maps: any real values.
        masks: True on the object; an image without object or without background gives NaN.
        patch: (height, width) over which maps are summed for `pointing`.

    Raises:
        ShapeMismatch: maps and masks that do not fit, or patches that do not tile them.

    Example:
        >>> mask = torch.tensor([[[True, False]]])
        >>> pointing(torch.tensor([[[3.0, 1.0]]]), mask, (1, 1))["energy"]
        array([0.75])
    """
    if maps.shape != masks.shape or maps.ndim != 3 or masks.dtype != torch.bool:
        raise ShapeMismatch(f"maps {list(maps.shape)} and bool masks {list(masks.shape)} need the same [image h w].")
    if maps.shape[1] % patch[0] or maps.shape[2] % patch[1]:
        raise ShapeMismatch(f"patches of {patch} do not tile maps of {list(maps.shape[1:])}.")
    from scipy.stats import rankdata

    maps, inside = maps.double(), masks.double()
    area = inside.mean((1, 2))
    positive = maps.clamp(min=0)
    total = positive.sum((1, 2))
    energy = torch.where(total > 0, (positive * inside).sum((1, 2)) / total.clamp(min=1e-300), area)
    tile = {"a": patch[0], "b": patch[1]}
    cells = reduce(maps, "i (h a) (w b) -> i (h w)", "sum", **tile)
    object_cells = reduce(inside, "i (h a) (w b) -> i (h w)", "mean", **tile) >= 0.5
    best = cells == cells.amax(1, keepdim=True)
    hit = (best & object_cells).sum(1) / best.sum(1)
    ranks = rankdata(rearrange(maps, "i h w -> i (h w)").numpy(), axis=1)
    flat = rearrange(masks, "i h w -> i (h w)").numpy()
    n_in, n = flat.sum(1), flat.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = ((ranks * flat).sum(1) - n_in * (n_in + 1) / 2) / (n_in * (n - n_in))
    undefined = (n_in == 0) | (n_in == n)
    scores = {"energy": energy.numpy(), "pointing": hit.double().numpy(), "auroc": auroc}
    return {name: np.where(undefined, np.nan, values) for name, values in scores.items()}


def gradient_times_input(
    model: Any, pixels: Tensor, classes: Tensor, batch_size: int = 64
) -> Float[Tensor, "image height width"]:
    """Plain gradient of a class logit times the input, summed over channels: the map that the exact one is compared
    with. `model` is a module from pixels to logits (a wrapped model is one)."""
    maps = []
    for part, own in zip(pixels.split(batch_size), classes.split(batch_size), strict=True):
        with torch.enable_grad():
            x = part.detach().clone().requires_grad_(True)
            said = model(x)[torch.arange(len(part)), own].sum()
            (gradient,) = torch.autograd.grad(said, x)
        maps.append((gradient * x).sum(1).detach())
    return torch.cat(maps)


def _centre(size: tuple[int, int]) -> Tensor:
    """Larger towards the middle."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in size)
    return torch.exp(-2 * (rows[:, None] ** 2 + columns[None] ** 2))


def _interval(values: np.ndarray, seed: int) -> dict[str, Any]:
    found = bootstrap(values, seed=seed)
    return {
        "value": float(found.effect[0]),
        "low": float(found.low[0]),
        "high": float(found.high[0]),
        "n": int(found.n[0]),
    }


def _over(own: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float]:
    found = paired_difference(own, other, seed=seed)
    ends = {"over_input_low": float(found.low[0]), "over_input_high": float(found.high[0])}
    return {"over_input": float(found.effect[0]), **ends}
