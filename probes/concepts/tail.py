"""The rest of a wrapped model, from the codes of concepts at a site to one number per image.

At `blocks.l.hook_resid_pre` or `hook_resid_post` the rows are patches: the codes are decoded to the stream, the tokens
before the patches (CLS, registers) are put in front of them, and the model runs on from there. At `hook_pooled` (and
`hook_embedding`) a row is an image or a crop, and the tail is the head.

Two things to know:

* **CLS has seen the image.** At a later layer the class token already holds what earlier layers moved there, and no
  mask on the patches takes it away. `prefix="mean"` puts the mean over the images in its place (**X**: `keep`).
* **What the concepts miss.** `residual="drop"` is the published tail, `f(U V)`; `"keep"` adds what the factorisation
  leaves over, so that the unmasked answer is the model's own. The difference of the two is reported as fidelity.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.labels import with_model_classes
from probes.concepts.factors import Factorisation

Prefix = Literal["keep", "mean"]
Residual = Literal["drop", "keep"]
Answer = Literal["logit", "probability", "margin"]

_STREAM = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


def start_layer(model: Any, site: str) -> int | None:
    """The block before which the tail starts; None for sites after pooling.

    Raises:
        BadData: a site from which the model cannot go on, or after which patches are not read any more.

    Example:
        >>> start_layer(model, "blocks.1.hook_resid_post")                                        # doctest: +SKIP
        2
    """
    if site in ("hook_pooled", "hook_embedding"):
        return None
    found = _STREAM.fullmatch(site)
    n = len(model.parts.blocks)
    layer = None if found is None else int(found[1]) + (found[2] == "post")
    if layer is None or not 1 <= layer <= n:
        raise BadData(
            f"a tail starts at blocks.L.hook_resid_pre or hook_resid_post (after block 0 at the earliest, of {n}), at "
            f"hook_pooled or at hook_embedding; {site!r} is none of them."
        )
    if layer == n and isinstance(model.parts.reads, tuple):
        raise BadData(
            f"after the last block this model reads {list(model.parts.reads)} of its tokens only, so patches at "
            f"{site!r} have no effect at all. Use blocks.{n - 2}.hook_resid_post or earlier, or hook_pooled."
        )
    return layer


def class_of(model: Any, target: int | str) -> int:
    """Number of a class given by name or number.

    Raises:
        UnknownName, OutOfRange: no such class.
    """
    names = list(model.parts.class_names)
    if isinstance(target, str):
        if target not in names:
            raise unknown("class", target, names)
        return names.index(target)
    if names and not 0 <= target < len(names):
        raise OutOfRange(f"class {target} of {len(names)}.")
    return int(target)


def reading(answer: Answer, target: int) -> Callable[[Float[Tensor, "row class"]], Float[Tensor, " row"]]:
    """Logits to one number: the logit of a class, its probability, or its lead over the best other class.

    Raises:
        UnknownName: none of these.
    """
    if answer == "logit":
        return lambda logits: logits[:, target]
    if answer == "probability":
        return lambda logits: logits.softmax(-1)[:, target]
    if answer == "margin":

        def margin(logits: Tensor) -> Tensor:
            others = torch.arange(logits.shape[1], device=logits.device) != target
            return logits[:, target] - logits[:, others].max(-1).values

        return margin
    raise unknown("answer", answer, ("logit", "probability", "margin"))


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelTail:
    """Codes of some images' places at a site to one number per row."""

    model: Any
    """A wrapped model with a head."""
    layer: int | None
    """Block that comes next; None: what is decoded is the pooled vector."""
    site: str
    """Where the codes live."""
    read: Callable[[Tensor], Tensor]
    """Logits to one number per row."""
    bank: Float[Tensor, "concept d"]
    """V."""
    centre: Float[Tensor, " d"]
    """Added to what is decoded."""
    prefix: Float[Tensor, "image token d"] | None = None
    """Tokens before the patches."""
    residual: Float[Tensor, "image place d"] | None = None
    """What the concepts leave over, where it is kept."""

    def __call__(self, codes: Float[Tensor, "row place concept"], images: Tensor) -> Float[Tensor, " row"]:
        """One number per row; differentiable."""
        return self.read(self.logits(codes, images))

    def logits(self, codes: Float[Tensor, "row place concept"], images: Tensor) -> Float[Tensor, "row class"]:
        """All logits per row."""
        model = self.model
        rows = codes.to(self.bank) @ self.bank + self.centre
        if self.residual is not None:
            rows = rows + self.residual[images]
        return run_from(model, self.layer, self.site, rows, None if self.prefix is None else self.prefix[images])


def run_from(
    model: Any, layer: int | None, site: str, rows: Float[Tensor, "row place d"], prefix: Tensor | None = None
) -> Float[Tensor, "row class"]:
    """Logits from activations at a site; with a graph where the activations have one."""
    rows = rows.to(model.device, model.dtype)
    if layer is None:
        pooled = rows[:, 0]
        if site == "hook_pooled" and model.parts.project is not None:
            pooled = model.parts.project(pooled)
        return model.parts.head(pooled)
    if prefix is not None:
        rows = torch.cat([prefix.to(rows), rows], dim=1)
    grad = torch.is_grad_enabled() and rows.requires_grad
    return model.run(rows, start_at_layer=layer, grad=grad).output


@torch.no_grad()
def activations(
    model: Any, images: Any, site: str, *, batch_size: int = 64
) -> tuple[Float[Tensor, "image place d"], Float[Tensor, "image token d"] | None, Float[Tensor, "image class"]]:
    """What a site holds for every image: its patches (one place for pooled sites), the tokens before them, the logits.

    Args:
        model: a wrapped model.
        images: an `ImageSet`, or pixels.
        site: see :func:`start_layer`.
        batch_size: images per forward.

    Raises:
        BadData: not a site that a tail can start from.
    """
    layer = start_layer(model, site)
    prefix = len(model.parts.prefix)
    found, before, logits = [], [], []
    for start in range(0, len(images), batch_size):
        run = model.run(pixels_of(model, images[start : start + batch_size]), capture=[site])
        value = run.cache[site].cpu()
        if layer is None:
            found.append(value.flatten(1)[:, None])
        else:
            found.append(value[:, prefix:])
            before.append(value[:, :prefix])
        logits.append(run.output.cpu())
    return torch.cat(found), torch.cat(before) if before and prefix else None, torch.cat(logits)


def pixels_of(model: Any, images: Any) -> Tensor:
    """Pixels as the model takes them, from an `ImageSet` or pixels."""
    pixels = images.pixels_for(model.preprocess) if hasattr(images, "pixels_for") else images
    return pixels.to(model.device, model.dtype)


def named(model: Any, images: Any) -> Any:
    """The same images with labels counted as the model counts its classes; pixels as they are."""
    return with_model_classes(images, model) if hasattr(images, "pixels_for") else images


def tail_of(
    model: Any,
    site: str,
    target: int | str,
    concepts: Factorisation,
    rows: Float[Tensor, "image place d"],
    prefix_tokens: Float[Tensor, "image token d"] | None = None,
    *,
    prefix: Prefix = "keep",
    residual: Residual = "drop",
    answer: Answer = "logit",
) -> tuple[ModelTail, Float[Tensor, "image place concept"]]:
    """The tail of a model on the codes of some images' activations, and these codes.

    Args:
        model: a wrapped model with a head.
        site: where the rows come from.
        target: class by name or number.
        concepts: a factorisation of rows of this site.
        rows: activations, from :func:`activations`.
        prefix_tokens: theirs, from there.
        prefix: what stands before the patches: each image's own tokens, or their mean.
        residual: keep or drop what the concepts leave over (**X**; the source drops it).
        answer: what is read from the logits.

    Raises:
        UnknownName: not one of the choices, or no such class.
        BadData: see :func:`start_layer`; a model without a head.
    """
    if prefix not in ("keep", "mean"):
        raise unknown("choice for the tokens before the patches", prefix, ("keep", "mean"))
    if residual not in ("drop", "keep"):
        raise unknown("choice for the residual", residual, ("drop", "keep"))
    if model.parts.head is None:
        raise BadData("this model has no head: importance for a class needs one. For CLIP, use clip.classifier(names).")
    layer = start_layer(model, site)
    flat = rows.flatten(0, 1).double().numpy()
    codes = concepts.encode(flat)
    left = torch.from_numpy(flat - concepts.decode(codes)).reshape(rows.shape)
    if prefix == "mean" and prefix_tokens is not None:
        prefix_tokens = prefix_tokens.mean(0, keepdim=True).expand_as(prefix_tokens)
    tail = ModelTail(
        model=model,
        layer=layer,
        site=site,
        read=reading(answer, class_of(model, target)),
        bank=torch.from_numpy(np.ascontiguousarray(concepts.bank)).to(model.device, model.dtype),
        centre=torch.from_numpy(np.ascontiguousarray(concepts.centre)).to(model.device, model.dtype),
        prefix=None if layer is None else prefix_tokens,
        residual=left.to(model.device, model.dtype) if residual == "keep" else None,
    )
    return tail, torch.from_numpy(codes).reshape(*rows.shape[:2], -1).to(model.dtype)
