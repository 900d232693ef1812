"""Architectures of dictionaries, one per file: settings, how they start, how they encode, what they minimise.

`named("topk")` finds a class by the name that stands in files; `NAMES` lists them all.
"""

import importlib
import json
from collections.abc import Sequence
from typing import Any

from mechvis.errors import BadData, unknown
from mechvis.lazy import publish
from sae.architecture import Architecture

NAMES = {
    "relu": "sae.architectures.relu:ReLU",
    "gated": "sae.architectures.gated:Gated",
    "p_anneal": "sae.architectures.p_anneal:PAnneal",
    "jumprelu": "sae.architectures.jumprelu:JumpReLU",
    "topk": "sae.architectures.topk:TopK",
    "batch_topk": "sae.architectures.batch_topk:BatchTopK",
    "matryoshka": "sae.architectures.matryoshka:Matryoshka",
    "nested_k": "sae.architectures.nested_k:NestedK",
    "matching_pursuit": "sae.architectures.matching_pursuit:MatchingPursuit",
    "archetypal": "sae.architectures.archetypal:Archetypal",
    "sparsemax": "sae.architectures.sparsemax:Sparsemax",
    "crosscoder": "sae.architectures.crosscoder:Crosscoder",
    "batch_topk_crosscoder": "sae.architectures.batch_topk_crosscoder:BatchTopKCrosscoder",
    "cross_layer_transcoder": "sae.architectures.cross_layer:CrossLayerTranscoder",
    "universal": "sae.architectures.universal:Universal",
    "fixed_pursuit": "sae.formats.fixed:FixedPursuit",
    "signed_topk": "sae.formats.fixed:SignedTopK",
    "linear": "sae.baselines.linear:Linear",
    "non_negative": "sae.baselines.non_negative:NonNegative",
    "nearest_centroid": "sae.baselines.kmeans:NearestCentroid",
}
"""Name in files -> where it is."""

__all__ = [
    *publish(__name__, {place.split(":")[1]: place.split(":")[0] for place in NAMES.values()}),
    "NAMES",
    "configured",
    "named",
]


def named(name: str) -> type[Architecture]:
    """The class of an architecture, by its name.

    Raises:
        UnknownName: there is none of this name; names the nearest.
    """
    if name not in NAMES:
        raise unknown("architecture", name, NAMES)
    module, found = NAMES[name].split(":")
    return getattr(importlib.import_module(module), found)


def configured(
    architecture: str, *, n_latents: int, k: int | None = None, settings: Sequence[str] = ()
) -> Architecture:
    """An architecture from words, as a command line has them.

    Args:
        architecture: its name.
        n_latents: latents.
        k: active latents per row, where the architecture has a k.
        settings: others as `name=value`; numbers, true, false and null as in JSON, other words as they are.

    Raises:
        UnknownName: no such architecture.
        BadData: a setting that it does not have, or that cannot be.

    Example:
        >>> configured("topk", n_latents=512, k=8, settings=["aux=0", "decoder=free"]).decoder
        'free'
    """
    found: dict[str, Any] = {"n_latents": n_latents} | ({} if k is None else {"k": k})
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise BadData(f"{setting!r} is not name=value, e.g. aux=0.03.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return named(architecture).from_json(found)
