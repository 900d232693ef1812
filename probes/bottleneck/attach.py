"""A bottleneck on a wrapped model, so that runs, edits and sweeps see its logits and its concepts.

The concept layer takes the place of the projection, and the elementwise layer with the sparse weights that of the
head: `hook_embedding` *is* the concept layer (standardised scores `[image concept]`), and an edit there is a concept
intervention. Blocks and their sites are the user's model's, untouched.
"""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import BadData, ParityError, ShapeMismatch
from mechvis.hooked import HookedViT
from mechvis.models.parts import TowerParts
from probes.bottleneck.record import Bottleneck

SITES = ("hook_pooled", "hook_embedding")


class ConceptLayer:
    """Pooled tokens or embedding to standardised concept scores."""

    def __init__(self, cbm: Bottleneck, before: Any = None):
        concepts = cbm.concepts
        self.directions, self.normalise, self.before = torch.from_numpy(concepts.directions), concepts.normalise, before
        self.mean, self.scale = (torch.from_numpy(cbm.arrays[name]) for name in ("mean", "scale"))

    def __call__(self, pooled: Tensor) -> Tensor:
        x = pooled if self.before is None else self.before(pooled)
        if self.normalise:
            x = x / x.norm(dim=-1, keepdim=True)
        return (x @ self.directions.to(x).T - self.mean.to(x)) / self.scale.to(x)


class BottleneckHead:
    """Standardised concept scores to logits."""

    def __init__(self, cbm: Bottleneck):
        self.linear = cbm.facts["layer"] == "linear"
        self.a, self.b, self.weight, self.bias = (
            torch.from_numpy(cbm.arrays[name]) for name in ("a", "b", "weight", "bias")
        )
        self._digest = hashlib.sha256()
        for name in ("directions", "mean", "scale", "a", "b", "weight", "bias"):
            self._digest.update(np.ascontiguousarray(cbm.arrays[name]).tobytes())
        self._digest.update(f"{cbm.facts['layer']} {cbm.facts['normalise']}".encode())

    def __call__(self, scores: Tensor) -> Tensor:
        active = scores if self.linear else (self.a.to(scores) * scores + self.b.to(scores)).relu()
        return active @ self.weight.to(scores).T + self.bias.to(scores)

    @property
    def fingerprint(self) -> str:
        """Hash of everything between the features and the logits."""
        return self._digest.hexdigest()[:16]


def with_bottleneck(model: Any, cbm: Bottleneck) -> HookedViT:
    """The model with its head replaced by the bottleneck; the user's module is borrowed, not changed.

    Args:
        model: the wrapped model whose features the bottleneck was fitted on (at `hook_pooled` or `hook_embedding`).
        cbm: the bottleneck.

    Returns:
        HookedViT: its `hook_embedding` holds the standardised concept scores, its logits are the bottleneck's.

    Raises:
        BadData: the bottleneck reads another site.
        ShapeMismatch: a model of another width.
        ParityError: the wrapped bottleneck does not give the record's logits.

    Example:
        >>> model = with_bottleneck(mechvis.load("scenes-vit"), cbm)                           # doctest: +SKIP
        >>> k = cbm.concepts.index("striped background")                                       # doctest: +SKIP
        >>> model.run(pixels, edits=[edits.zero("hook_embedding", units=[k])]).logits          # doctest: +SKIP
    """
    site = cbm.facts["site"]
    if site not in SITES or (site == "hook_embedding" and model.parts.project is None):
        raise BadData(
            f"this bottleneck reads {site!r}; a head can be attached where the model's own head reads: fit it on "
            f"{'hook_embedding' if model.parts.project is not None else 'hook_pooled'}."
        )

    def with_head(parts: TowerParts) -> TowerParts:
        before = parts.project if site == "hook_embedding" else None

        def reference(inputs: Tensor) -> Tensor:
            features = model.run(inputs, capture=[site]).cache[site]
            logits = cbm.logits(features.double().cpu().numpy())
            return torch.from_numpy(logits).to(features)

        return replace(
            parts,
            project=ConceptLayer(cbm, before),
            head=BottleneckHead(cbm),
            class_names=cbm.class_names,
            reference=reference,
        )

    made = HookedViT(
        model.bare, with_head(model.parts), preprocess=model.preprocess, name=f"{model.title}, concept bottleneck"
    )
    own = model.family
    made.__dict__["family"] = None if own is None else lambda module: with_head(own(module))
    _check(made, model, cbm)
    return made


def _check(made: HookedViT, model: Any, cbm: Bottleneck) -> None:
    """The wrapped bottleneck against the record's own arithmetic."""
    pixels = model.parts.example_batch(model.bare, torch.Generator().manual_seed(0))
    features = model.run(pixels, capture=[cbm.facts["site"]]).cache[cbm.facts["site"]]
    width = cbm.arrays["directions"].shape[1]
    if features.shape[-1] != width:
        raise ShapeMismatch(
            f"the bottleneck reads {width} dimensions at {cbm.facts['site']}, got {features.shape[-1]}."
        )
    expected = torch.from_numpy(cbm.logits(features.double().cpu().numpy()))
    found = made.run(pixels).logits.double().cpu()
    far = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    allowed = 1e-10 if model.dtype == torch.float64 else 1e-4
    if not far <= allowed:
        raise ParityError(f"the attached bottleneck is {far:.1e} away from the record; allowed {allowed:.0e}.")
    made.__dict__["parity"] = model.parity
