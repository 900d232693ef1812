"""Planted models: small networks whose circuit is known, and the slow evaluator that certifies it.

All of them are wrapped `HookedViT`s in float64, built in milliseconds. Edges are named writer `->` reader.

======================  ============================================================================================
name                    what is known about it
======================  ============================================================================================
`saturation_net`        F3: a big edge without gradient; AtP and EAP miss it, EAP-IG finds it
`depth_net`             F4: effects of heads of twelve layers are exactly exp(g l)
`two_token_net`         a saturated query-key product: AtP misses it, its QK fix is exact
`linear_net`            EAP is exact on every edge
`path_net`              F16: one path through hidden units, and a loud unit that nobody reads
`cue_lookup`            P1: a two-hop circuit of seven edges among 110, with families of pairs and loud distractors
`WiredViT`              what they are made of, for wiring your own
----------------------  --------------------------------------------------------------------------------------------
`edge_forward`          forward with an explicit input per reader: the slow truth about sets of edges
`edge_effects`          exact effect of every single edge
`edge_gradients`        EAP and EAP-IG the plain way
`certify`               measures that a planted circuit is the only one
======================  ============================================================================================
"""

from mechvis.testing.planted.certificate import Certificate, FamilyCertificate, certify
from mechvis.testing.planted.cue_model import cue_lookup
from mechvis.testing.planted.cue_task import (
    CUE_FAMILIES,
    CueScenes,
    cue_active,
    cue_circuit,
    cue_images,
    cue_pairs,
    cue_scenes,
)
from mechvis.testing.planted.depth import depth_effects, depth_net, depth_pairs
from mechvis.testing.planted.edge_oracle import edge_effects, edge_forward, edge_gradients, edges_of, writes_of
from mechvis.testing.planted.linear import linear_net, linear_pairs
from mechvis.testing.planted.pairs import PlantedPairs
from mechvis.testing.planted.path import (
    PATH_KL,
    PATH_LOUD,
    PATH_LOUDNESS,
    PATH_UNITS,
    path_connection,
    path_images,
    path_net,
)
from mechvis.testing.planted.saturation import (
    SATURATION_CORE,
    SATURATION_EDGES,
    SATURATION_SMALL,
    saturation_net,
    saturation_pairs,
)
from mechvis.testing.planted.two_token import TWO_TOKEN_EDGES, two_token_net, two_token_pairs
from mechvis.testing.planted.wired import HeadViews, NeuronViews, WiredViT, wired_parts, wrapped

__all__ = [
    "CUE_FAMILIES",
    "PATH_KL",
    "PATH_LOUD",
    "PATH_LOUDNESS",
    "PATH_UNITS",
    "SATURATION_CORE",
    "SATURATION_EDGES",
    "SATURATION_SMALL",
    "TWO_TOKEN_EDGES",
    "Certificate",
    "CueScenes",
    "FamilyCertificate",
    "HeadViews",
    "NeuronViews",
    "PlantedPairs",
    "WiredViT",
    "certify",
    "cue_active",
    "cue_circuit",
    "cue_images",
    "cue_lookup",
    "cue_pairs",
    "cue_scenes",
    "depth_effects",
    "depth_net",
    "depth_pairs",
    "edge_effects",
    "edge_forward",
    "edge_gradients",
    "edges_of",
    "linear_net",
    "linear_pairs",
    "path_connection",
    "path_images",
    "path_net",
    "saturation_net",
    "saturation_pairs",
    "two_token_net",
    "two_token_pairs",
    "wired_parts",
    "wrapped",
    "writes_of",
]
