"""A vision transformer from one of its layers on, as the tail of a completeness test.

The locations are the patches of the stream before block `layer`; the tail is the rest of the model, run by
`model.run(stream, start_at_layer=layer)`. What the class token and the registers carry then is a choice (X): left as
they are, they hand the answer around the concepts, and any set of concepts looks complete. So by default each of them
carries its mean over training images (`prefix="mean"`), and the answer must come out of the patches.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, unknown
from probes.concept_tests.completeness.located import Located

Prefix = Literal["mean", "own"]


def vit_located(
    model: Any,
    images: ImageSet,
    layer: int,
    *,
    prefix: Prefix = "mean",
    means: Located | None = None,
    centre: bool = True,
    batch: int = 64,
) -> Located:
    """The patches of a layer with the rest of the model behind them.

    Args:
        model: a wrapped classifier.
        images: labels are taken where there are any.
        layer: the stream before this block, from 1.
        prefix: what tokens before the patches carry: `mean` over images, or `own`, with which the answer can pass by
            the concepts.
        means: the training set, for the means of a test set; default: the means of these images.
        centre: take the mean patch off the representations, and put it back before the tail (X): else one direction
            that all patches share fills every cosine.
        batch: images per forward.

    Raises:
        OutOfRange: no such layer.
        BadData: no head; no tokens before the patches to hold still (use `prefix="own"`); means of another layer.

    Example:
        >>> train = vit_located(model, some, 2)                                                    # doctest: +SKIP
        >>> test = vit_located(model, others, 2, means=train)                                      # doctest: +SKIP
    """
    if prefix not in get_args(Prefix):
        raise unknown("content of the prefix tokens", prefix, get_args(Prefix))
    if not 1 <= layer < len(model.parts.blocks):
        raise OutOfRange(
            f"layer={layer}: a stream between two blocks is before block 1 to {len(model.parts.blocks) - 1}."
        )
    if model.parts.head is None:
        raise BadData("completeness is about answers, and this model has no head. For CLIP: clip.classifier(...).")
    site, first = f"blocks.{layer}.hook_resid_pre", len(model.parts.prefix)
    if not first and prefix == "mean":
        raise BadData("this model has no token before the patches; say prefix='own' (nothing is held still).")
    streams, answers = [], []
    for start in range(0, len(images), batch):
        run = model.run(images[start : start + batch], capture=site)
        streams.append(run.cache[site])
        answers.append(run.output.argmax(1))
    stream = torch.cat(streams)
    still = stream[:, :first]
    about = {"layer": layer, "prefix": prefix, "images": images.name, "centre": centre}
    if means is not None and any(means.about.get(word) != about[word] for word in ("layer", "prefix", "centre")):
        raise BadData(f"the means are of {_said(means.about)}, these images of {_said(about)}.")
    z = stream[:, first:]
    middle = z.mean((0, 1)) if means is None else means.about["middle"]
    middle = about["middle"] = middle if centre else torch.zeros_like(middle)
    if prefix == "mean":
        still = still.mean(0, keepdim=True) if means is None else means.about["still"]
        about["still"] = still

    def tail(z: Float[Tensor, "image location d"], rows: Int[Tensor, " image"]) -> Float[Tensor, "image class"]:
        before = still.expand(len(z), -1, -1) if prefix == "mean" else still[rows]
        whole = torch.cat([before.to(z), z + middle], dim=1)
        return model.run(whole, start_at_layer=layer, grad=torch.is_grad_enabled(), check_finite=False).output

    return Located(
        z=z - middle,
        tail=tail,
        answers=torch.cat(answers),
        labels=None if images.labels is None else torch.from_numpy(images.labels).long(),
        ids=images.ids,
        about=about,
    )


def _said(about: dict[str, Any]) -> str:
    centred = "centred" if about.get("centre") else "not centred"
    return f"layer {about.get('layer')} with prefix={about.get('prefix')!r}, {centred}"
