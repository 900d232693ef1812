"""A dictionary in the way of an activation, so that its latents are sites of the model.

1. The dictionary's ends become sites of the model: what it reads, what it writes; widths are compared.
2. It becomes parts that any engine understands (`mechvis.models.parts.SpliceParts`): encode, decode, and what one unit
   of each latent writes. That this is linear is looked at, on drawn codes.
3. `mechvis.spliced.SplicedViT` runs the same borrowed model with it; the given model stays as it is.

With `error=True` (the default) what the dictionary misses is added, so the model's answers are the same bit for bit
until a latent is changed; Prisma's HookedSAEViT has no such term. With `error=False` the activation is replaced by what
the latents write. A transcoder reads `ln2.hook_normalized` and stands in the place of the MLP's write.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from mechvis.errors import BadData, MixedDevices, RefusedMethod, ShapeMismatch
from mechvis.models.parts import SpliceParts, TowerParts
from mechvis.spliced import SplicedViT

TokenGroup = Literal["all", "cls", "registers", "prefix", "patches"]
TOKEN_GROUPS = ("all", "cls", "registers", "prefix", "patches")


def splice(
    model: Any,
    dictionary: Any,
    *,
    site: str | None = None,
    reads: str | None = None,
    error: bool = True,
    tokens: TokenGroup | Sequence[int] = "all",
) -> SplicedViT:
    """A model with a dictionary in the way of one of its activations.

    Args:
        model: a wrapped tower (for CLIP: `clip.vision`, or `clip.classifier(class_names)`); one with dictionaries gets
            one more.
        dictionary: a `sae.Dictionary` that reads one site and writes one: a sparse autoencoder at the stream,
            `hook_mlp_out`, `hook_attn_out` or `attn.hook_z` (heads side by side), or a transcoder.
        site: what it writes; by default the name that it was trained on.
        reads: what it reads; by default the same, or the name that a transcoder was trained on.
        error: add what the dictionary misses.
        tokens: those that it is for; the others stay as they are and have no latents. A dictionary that was trained on
            patches knows nothing of the CLS token: `"patches"`.

    Returns:
        SplicedViT: a wrapped model whose graph has `<site>.hook_latents` `[row token latent]` and, with the error term,
        `<site>.hook_error`.

    Raises:
        UnknownSite, ShapeMismatch: a site that the model does not have, or has with another width.
        RefusedMethod: a dictionary of several sites (see :func:`sae.splicing.written_changes`), or one whose decoder is
            not linear.
        BadData, MixedDevices.

    Example:
        >>> spliced = sae.splice(model, dictionary)                                               # doctest: +SKIP
        >>> site = "blocks.2.hook_resid_post.hook_latents"                                        # doctest: +SKIP
        >>> spliced.run(pixels, edits=[edits.zero(site, units=[17])], capture=[site]).logits      # doctest: +SKIP
        >>> mechvis.sweep(spliced, images, units="latents", edit="zero").top(5)                   # doctest: +SKIP
    """
    known = getattr(model, "unguarded", None) or model.parts
    part = splice_parts(model, dictionary, site=site, reads=reads, error=error, tokens=tokens)
    if part.site in {other.site for other in known.splices}:
        raise BadData(f"there is a dictionary at {part.site} already; splice the other one into the model before it.")
    parts = replace(known, splices=(*known.splices, part))
    made = SplicedViT(model.bare, parts, preprocess=model.preprocess, name=f"{model.title}, spliced".lstrip(", "))
    made.__dict__["parity"], made.__dict__["family"] = model.parity, model.family
    return made


def splice_parts(
    model: Any,
    dictionary: Any,
    *,
    site: str | None = None,
    reads: str | None = None,
    error: bool = True,
    tokens: TokenGroup | Sequence[int] = "all",
) -> SpliceParts:
    """A dictionary as parts of a model; arguments and errors as in :func:`splice`."""
    ends = dictionary.ends
    if len(ends.reads) != 1 or len(ends.writes) != 1:
        raise RefusedMethod(
            f"this dictionary reads {len(ends.reads)} sites and writes {len(ends.writes)}: in one run what comes later "
            "is not known when the first is written. Run once, and put in what changed codes write: "
            "written_changes(dictionary, activations, change) of sae.splice."
        )
    (own_read, d_in), (own_write, d_out) = next(iter(ends.reads.items())), next(iter(ends.writes.items()))
    written = model.graph.resolve(own_write if site is None else site)
    read = written if reads is None and not ends.transcodes else model.graph.resolve(reads or own_read)
    for name, width, verb in ((read, d_in, "reads"), (written, d_out, "writes")):
        _check_width(model, name, width, verb)
    device = dictionary.scale_in.device
    if device != model.device:
        raise MixedDevices(
            f"the dictionary lies on {device}, the model on {model.device}: dictionary.to({model.device})."
        )
    found = SpliceParts(
        site=written,
        reads=read,
        n_latents=dictionary.n_codes,
        encode=dictionary.encode,
        decode=lambda codes, seen: dictionary.decode(codes, like=seen),
        directions=lambda: dictionary.directions,
        scale=lambda seen: row_scale(dictionary, seen),
        error=error,
        tokens=_tokens(model.parts, tokens),
        identity=dictionary.fingerprint,
    )
    check_linear(dictionary)
    return found


def row_scale(dictionary: Any, seen: Tensor) -> Tensor | None:
    """Factor of each row on what latents write: where rows are scaled by their own norm."""
    from sae.normaliser import OF_ROWS, scaled

    kind = dictionary.architecture.normalise
    if kind not in OF_ROWS:
        return None
    seen = seen.to(dictionary.scale_in)
    return scaled(seen, list(dictionary.ends.reads.values()), kind, dictionary.scale_in).scale


@torch.no_grad()
def check_linear(dictionary: Any) -> None:
    """Does what latents write add up, by the rows of `directions`?

    Raises:
        RefusedMethod: it does not, by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(4, dictionary.n_codes, generator=generator).to(dictionary.scale_in)
    seen = torch.randn(4, dictionary.ends.d_in, generator=generator).to(dictionary.scale_in)
    written = dictionary.decode(codes, like=seen) - dictionary.decode(torch.zeros_like(codes), like=seen)
    expected, scale = codes @ dictionary.directions, row_scale(dictionary, seen)
    expected = expected if scale is None else expected * scale
    if (written - expected).abs().max() > 1e-3 * expected.abs().max().clamp_min(1e-6):
        raise RefusedMethod(
            f"what the latents of this {dictionary.architecture.NAME} dictionary write is not a sum of its directions, "
            "so a change of one latent has no direction of its own."
        )


def _check_width(model: Any, name: str, width: int, verb: str) -> None:
    info = model.graph[name]
    sizes = dict(zip(info.axes, info.sizes, strict=True))
    if "key" in sizes or info.axes[-1] in ("one", "latent") or ("head" in sizes and info.axes[-1] != "d_head"):
        raise BadData(f"a dictionary {verb} vectors; {name} is [{' '.join(info.axes)}].")
    last = [sizes[axis] for axis in info.axes if axis not in ("row", "token")]
    if None not in last and (own := int(torch.tensor(last).prod())) != width:
        raise ShapeMismatch(f"this dictionary {verb} vectors of width {width}, and {name} has {own}.")


def _tokens(parts: TowerParts, tokens: TokenGroup | Sequence[int]) -> tuple[int, ...] | None:
    n_prefix, n = len(parts.prefix), parts.n_tokens
    if isinstance(tokens, str):
        if tokens not in TOKEN_GROUPS:
            from mechvis.errors import unknown

            raise unknown("token group", tokens, TOKEN_GROUPS)
        names = {"cls": "cls", "registers": "register"}
        chosen = {
            "all": None,
            "prefix": tuple(range(n_prefix)),
            "patches": tuple(range(n_prefix, n)),
        }.get(tokens, tuple(i for i, word in enumerate(parts.prefix) if word.startswith(names.get(tokens, ""))))
    else:
        chosen = tuple(int(token) for token in tokens)
        if any(not 0 <= token < n for token in chosen) or len(set(chosen)) < len(chosen):
            raise BadData(f"tokens={list(chosen)[:6]}: different ones from 0 to {n - 1}.")
    if chosen is not None and not chosen:
        raise BadData(f"tokens={tokens!r}: this model has none; its prefix is {list(parts.prefix)}.")
    return chosen
