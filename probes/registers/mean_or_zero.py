"""Are massive activations a bias? Set them to their mean, and to zero (methods.md 12, **K**).

1. Means of the massive entries over reference images.
2. On other images, the massive entries become zero; or their mean; or as many random dimensions become zero.
3. A bias: zero ruins the answers, the mean does not, and random dimensions do not.
"""

import warnings
from typing import Any

import numpy as np
import polars as pl
import torch

from mechvis import edits
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, EffectlessEdit
from mechvis.labels import with_model_classes
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from probes.registers.massive import MassiveActivations, massive_mask


class MassiveTest(Record):
    """Mean against zero; see :func:`massive_test`."""

    KIND = "massive_test"


@torch.no_grad()
def massive_test(
    model: Any,
    images: Any,
    reference: Any,
    found: MassiveActivations,
    *,
    layer: int,
    batch_size: int = 32,
    seed: int = 0,
    allow_overlap: bool = False,
) -> MassiveTest:
    """Set the massive entries after a block to zero, or to their mean over reference images: which hurts?

    Args:
        model: a wrapped model with a head.
        images: what is measured.
        reference: other images, for the means.
        found: from :func:`massive_activations`.
        layer: block after which entries are set.
        batch_size: images per forward.
        seed: of the control and the bootstrap.
        allow_overlap: accept images that made the means.

    Returns:
        MassiveTest: rows `zero`, `mean`, and `zero, random dimensions` (as many others at the same tokens): `changed`
        (total variation of the probabilities), `kl`, and `accuracy` if there are labels, with intervals.

    Raises:
        SplitOverlap: means from images that are measured.
        BadData: no fixed massive dimension there, no head, or no massive entry in these images.

    Example:
        >>> massive_test(model, images, others, found, layer=8).table                              # doctest: +SKIP
    """
    if model.parts.head is None:
        raise BadData("this model has no head, so there is no answer to change. For CLIP use clip.classifier(names).")
    dims = found.dimensions(layer)
    if not dims:
        raise BadData(
            f"no fixed massive dimension after layer {layer}; there are some after {found.layers() or 'none'}."
        )
    if isinstance(images, ImageSet) and isinstance(reference, ImageSet) and not allow_overlap:
        refuse_overlap(images, reference, what="images that are measured and images that make the means")
    site, bounds = f"blocks.{layer}.hook_resid_post", (found.facts["least"], found.facts["ratio"])
    constants = _constants(model, reference, site, dims, bounds, batch_size)
    width = model.parts.d_model
    others = np.setdiff1d(np.arange(width), dims)
    random = np.random.default_rng(seed).permutation(others)[: len(dims)].tolist()
    labels = None
    if isinstance(images, ImageSet) and images.labels is not None:
        labels = np.asarray(with_model_classes(images, model).labels)
    p: dict[str, list[np.ndarray]] = {"as it is": [], "zero": [], "mean": [], "zero, random dimensions": []}
    entries = 0
    for start in range(0, len(images), batch_size):
        pixels = model.inputs(images[start : start + batch_size])
        run = model.run(pixels, capture=[site])
        value = run.cache[site].double()
        mask = massive_mask(value, value.abs().flatten(1).median(1).values, *bounds)
        entries += int(mask[..., dims].sum())
        p["as it is"].append(_p(run.output))
        # Every dimension at its own tokens; a batch may hold none of one.
        here = [i for i, dim in enumerate(dims) if bool(mask[..., dim].any())]
        arms = {
            "zero": [edits.zero(site, tokens=mask[..., dims[i]], units=[dims[i]]) for i in here],
            "mean": [
                edits.patch(
                    site, torch.full_like(run.cache[site], constants[i]), tokens=mask[..., dims[i]], units=[dims[i]]
                )
                for i in here
            ],
            "zero, random dimensions": [edits.zero(site, tokens=mask[..., dims[i]], units=[random[i]]) for i in here],
        }
        for name, changes in arms.items():
            with warnings.catch_warnings():
                # That an exact constant is its own mean is a result, not a mistake.
                warnings.simplefilter("ignore", EffectlessEdit)
                p[name].append(_p(model.run(pixels, edits=changes).output))
    if not entries:
        raise BadData(f"none of the {len(images)} images has a massive entry after layer {layer}.")
    return _tested(model, images, {name: np.concatenate(each) for name, each in p.items()}, labels, layer, dims, seed)


def _constants(
    model: Any, reference: Any, site: str, dims: list[int], bounds: tuple[float, float], batch_size: int
) -> np.ndarray:
    """Mean of each massive dimension over the massive entries of reference images, `[dimension]`."""
    total, count = np.zeros(len(dims)), np.zeros(len(dims))
    for start in range(0, len(reference), batch_size):
        value = (
            model.run(reference[start : start + batch_size], capture=[site], stop_when_captured=True)
            .cache[site]
            .double()
        )
        mask = massive_mask(value, value.abs().flatten(1).median(1).values, *bounds)[..., dims]
        total += (value[..., dims] * mask).sum((0, 1)).cpu().numpy()
        count += mask.sum((0, 1)).cpu().numpy()
    if not count.all():
        missing = [dims[i] for i in np.flatnonzero(count == 0)]
        raise BadData(f"dimensions {missing} are not massive in any reference image: use more, or other ones.")
    return total / count


def _p(logits: torch.Tensor) -> np.ndarray:
    return logits.double().softmax(-1).cpu().numpy()


def _tested(
    model: Any, images: Any, p: dict[str, np.ndarray], labels: np.ndarray | None, layer: int, dims: list[int], seed: int
) -> MassiveTest:
    clean = p.pop("as it is")
    rows, arrays = [], {}
    for name, after in p.items():
        log = np.log(np.maximum(clean, 1e-300)) - np.log(np.maximum(after, 1e-300))
        values = {"changed": 0.5 * np.abs(after - clean).sum(1), "kl": (clean * log).sum(1)}
        if labels is not None:
            values["accuracy_drop"] = (clean.argmax(1) == labels) * 1.0 - (after.argmax(1) == labels)
        row: dict[str, Any] = {"set_to": name}
        for measure, per_image in values.items():
            one = bootstrap(per_image, seed=seed)
            row |= {measure: float(one.effect[0]), f"{measure}_low": float(one.low[0])}
            row |= {f"{measure}_high": float(one.high[0])}
            arrays[f"{measure}/{name.replace(', ', '_').replace(' ', '_')}"] = per_image
        rows.append(row | {"n": len(after)})
    return MassiveTest(
        title=f"Massive dimensions {dims} after block {layer}: mean against zero",
        tables={"test": pl.DataFrame(rows)},
        arrays=arrays,
        facts={"layer": layer, "dimensions": dims},
        words={
            "changed": "total variation of the class probabilities, 0 to 1",
            "kl": "KL(as it is || edited), in nats",
            "accuracy_drop": "accuracy as it is minus edited; positive: the entries were needed",
        },
        caveats=("A constant that acts as a bias: `zero` hurts, `mean` does not, random dimensions do not.",),
        provenance=provenance(model=model, images=images if isinstance(images, ImageSet) else None, seed=seed),
    )
