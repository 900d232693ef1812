"""What a decomposition is about, settled and checked; and the passes: images by sources, a few rows at a time.

1. The stream before every block is computed once per image, by the plain blocks.
2. Sources are sorted by layer and taken in lots. A lot starts at its first layer, where `beta` is still 0, and its
   later sources join on the way (:mod:`circuits.contextual.batched`).
3. A pass ends after the last block that somebody looks at.

References, labels and splits are those of :func:`mechvis.sweep` (:func:`mechvis.sweep_inputs.prepare`), so that beta
and an ablation's effect mean the same by their arguments.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.contextual.batched import Batched, Pair
from circuits.contextual.rules import Rules, rules_of
from circuits.contextual.sources import Source, at_groups, representatives, sources_of
from circuits.contextual.walk import walk
from circuits.pairs.pairs import Pairs
from mechvis import block as plain
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, unknown
from mechvis.models.parts import TowerParts
from mechvis.progress import track
from mechvis.sweep_inputs import Prepared, prepare

Paths = Literal["all", "direct"]
PATHS = ("all", "direct")
EDITS = ("zero", "mean", "mean_positional", "resample", "patch")

ALIASES = {"hook_embed": "blocks.0.hook_resid_pre"}
"""Sites that are the same tensor: a source in the embedding is put in at the second."""

See = Callable[[str, Float[Tensor, "image *rest"], Float[Tensor, "source image *rest"], Sequence[int], range], None]
"""(site, total, beta, which sources, which images)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """Everything that is settled before a pass."""

    prepared: Prepared
    """Images, references, labels."""
    sources: tuple[Source, ...]
    """In the order of the result."""
    rules: Rules
    """What happens to pairs."""
    paths: Paths
    """All paths, or only what a source itself wrote."""
    batch_size: int
    """Rows (source x image) at a time."""
    classes: tuple[Int[Tensor, " image"], Int[Tensor, " image"]] | None
    """Target and contrast class of each image, where pairs say them; the same twice: the best other one."""

    @property
    def n_images(self) -> int:
        """Images that are decomposed."""
        return len(self.prepared.images)

    def provenance(self, **more: Any) -> dict:
        """Where a result comes from."""
        from mechvis.data.images import ImageSet
        from mechvis.provenance import provenance

        settings = self.prepared.settings
        facts = {
            "sources": [source.name for source in self.sources],
            "rules": {name: getattr(self.rules, name) for name in self.rules.__dataclass_fields__},
            "paths": self.paths,
            "reference_images": getattr(self.prepared.means, "n", None),
            **{key: settings[key] for key in ("edit", "labels", "reference", "source", "seed")},
            **more,
        }
        images = self.prepared.images if isinstance(self.prepared.images, ImageSet) else None
        return provenance(model=self.prepared.model, images=images, seed=settings["seed"], contextual=facts)


def setup(
    model: Any,
    images: Any,
    sources: Any,
    *,
    rules: str | Rules,
    edit: str,
    reference: Any,
    source: Any,
    groups: Any,
    layers: Iterable[int] | None,
    labels: str | None,
    paths: str,
    batch_size: int,
    seed: int,
    allow_overlap: bool,
) -> Setup:
    """Check and settle the arguments that all functions of this package share; see :func:`contextual`."""
    chosen = rules_of(rules)
    if paths not in PATHS:
        raise unknown("kind of paths", paths, PATHS)
    if batch_size < 1:
        raise OutOfRange(f"batch_size={batch_size}: give at least 1 row.")
    classes = None
    if isinstance(images, Pairs):
        images, reference, source, classes = _of_pairs(images, edit, reference, source)
        if labels == "predicted":
            classes = None
        elif labels == "given" and classes is not None:
            labels = None  # pixels have none; the pairs' own are what was asked for
    listed = sources_of(model, sources, layers=layers)
    prepared = prepare(
        _with_output(model),
        images,
        units=representatives(model, listed),
        edit=edit,
        metric="logit_diff",
        labels=labels,
        reference=reference,
        source=source,
        layers=None,
        engine="wave",
        seed=seed,
        allow_overlap=allow_overlap,
    )
    if groups is not None:
        listed = at_groups(model, prepared.images, listed, groups)
    return Setup(
        prepared=prepared,
        sources=tuple(listed),
        rules=chosen,
        paths=paths,
        batch_size=batch_size,
        classes=classes,
    )


def _of_pairs(pairs: Pairs, edit: str, reference: Any, source: Any) -> tuple[Tensor, Any, Any, Any]:
    """Pairs as images: the corrupt half is the other run of `patch`, and by default what means are taken over."""
    if edit == "patch" and source is None:
        source = pairs.corrupt
    if edit in ("mean", "mean_positional") and reference is None:
        reference = pairs.corrupt
    own, other = pairs.clean_labels, pairs.corrupt_labels
    return pairs.clean, reference, source, None if own is None else (own, own if other is None else other)


def _with_output(model: Any) -> Any:
    """A model without a head with an empty one: preparation is made for metrics of logits, and nothing is measured on
    these."""
    if model.parts.head is not None:
        return model
    from mechvis.hooked import HookedViT

    parts = replace(model.parts, head=nn.Identity())
    return HookedViT(model.bare, parts, preprocess=model.preprocess, name=model.title)


@torch.no_grad()
def decompose_all(ready: Setup, watch: Collection[str], see: See, *, progress: bool, what: str) -> None:
    """Run all passes.

    Args:
        ready: what to decompose.
        watch: sites to look at.
        see: gets every watched site of every pass: the total, beta of the sources that have begun (for the others it
            is zero), which sources these are, and which images.
        progress: show a progress bar.
        what: its title.
    """
    prepared = ready.prepared
    model, parts = prepared.model, prepared.model.parts
    model._check_mode()
    order = sorted(range(len(ready.sources)), key=lambda i: ready.sources[i].layer)
    images_at_once = max(1, min(ready.n_images, 32, ready.batch_size))
    lot = max(1, ready.batch_size // images_at_once)
    units = representatives(model, ready.sources)
    sites = frozenset(ALIASES.get(site, site) for site in watch)
    known: dict[str, Any] = {}
    with track(ready.n_images * len(order), what, " rows", show=progress) as bar:
        for start in range(0, ready.n_images, images_at_once):
            part = range(start, min(start + images_at_once, ready.n_images))
            inputs = prepared.pixels(part)
            inputs = inputs.to(model.device, model.dtype) if inputs.is_floating_point() else inputs.to(model.device)
            inputs = model.inputs(inputs)
            values = _finite(prepared.replacement(units, part))
            layout = model._layout(inputs, 0, None)
            streams = _streams(parts, inputs, layout)
            for first in range(0, len(order), lot):
                rows = order[first : first + lot]
                sources = [ready.sources[i] for i in rows]
                ops = Batched(
                    ready.rules,
                    sources,
                    values=values,
                    watch=sites,
                    see=lambda site, total, beta, rows=rows, part=part: see(site, total, beta, rows[: len(beta)], part),
                    direct=ready.paths == "direct",
                    known=known,
                    images=part,
                )
                at = sources[0].layer
                walk(
                    parts,
                    ops,
                    Pair(streams[at], None),
                    start=at,
                    layout=layout,
                    pick=picker(parts, inputs),
                    stop=_stop(model, sites, at),
                )
                bar.update(len(rows) * len(part))


def _streams(parts: TowerParts, inputs: Tensor, layout: Any) -> list[Tensor]:
    """The stream before every block, and after the last."""
    streams = [parts.embed(inputs)]
    for block in parts.blocks:
        streams.append(plain.plain(block, streams[-1], layout))
    if not torch.isfinite(streams[-1].sum()):
        raise NotFinite("the stream after the last block holds NaN or Inf on one of the images; nothing to decompose.")
    return streams


def _stop(model: Any, sites: Collection[str], start: int) -> int | None:
    """The block before which a pass may end; None if the read-out is looked at."""
    layers = [model.graph[site].layer for site in sites]
    return None if None in layers else max(start, 1 + max(layers))


def _finite(values: Callable[[str], Tensor | None]) -> Callable[[str], Tensor | None]:
    """Reference values that are looked at before they are used."""

    def checked(site: str) -> Tensor | None:
        value = values(site)
        if value is not None and not torch.isfinite(value.sum()):
            raise NotFinite(f"the reference values at {site} hold NaN or Inf.")
        return value

    return checked


def picker(parts: TowerParts, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """The tokens that the read-out needs, of a tensor `[... image token d_model]`."""
    reads = parts.reads
    if reads is None:
        return lambda x: x
    if isinstance(reads, tuple):
        return lambda x: x[..., list(reads), :]
    tokens = reads(inputs)
    rows = torch.arange(len(inputs), device=inputs.device)
    return lambda x: x[..., rows, tokens, :].unsqueeze(-2)


def splittable(model: Any, sites: Iterable[str]) -> list[str]:
    """Names or patterns of sites as names, refused where a site has no pair.

    Raises:
        UnknownSite: nothing matches.
        BadData: scores, patterns, norm scales or head results.
    """
    found = model.graph.match(list(sites))
    for name in found:
        if name.rsplit(".", 1)[-1] in ("hook_scale", "hook_attn_scores", "hook_pattern", "hook_result"):
            raise BadData(
                f"{name} is not split: scores, patterns and norm scales are no sums of parts (a head's result is its "
                "hook_z times W_O)."
            )
    return found


def check_shapes(beta: Tensor, total: Tensor, site: str) -> None:
    """Refuse what is not finite.

    Raises:
        NotFinite: names the site.
        ShapeMismatch: beta does not belong to the total.
    """
    if beta.shape[1:] != total.shape:
        raise ShapeMismatch(f"beta at {site} is {list(beta.shape)}, its total {list(total.shape)}.")
    if not torch.isfinite(beta.sum()) and not torch.isfinite(beta).all():
        raise NotFinite(f"beta at {site} holds NaN or Inf; try rules='default', or a reference nearer to the data.")
