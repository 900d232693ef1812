"""Which layers a circuit draws on: edge scores gathered by the layer they come from and the layer they go to.

    Lambda[i, j] = sum of |c(e)| over the edges from a component of layer i to one of layer j      (methods.md 4.2)

with c(e) the mean over images. Edges out of the embedding are left out (**C**); the column after the last layer is the
output. Heads of a layer write to its own MLP, so the diagonal is not empty.

Per image the same is kept with the signs of the means frozen: `sum of sign(c(e)) c(e, image)`. Its mean over images
is Lambda exactly, it is all that has to be stored (a table of layers per image instead of tens of thousands of
edges), and other bands can be tried on it later.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from circuits.comparison.scores import edge_scores
from circuits.edges.graph import EdgeGraph
from mechvis.errors import BadData, OutOfRange, unknown

Targets = Literal["out", "deep", "global"]
TARGETS = ("out", "deep", "global")

Bands = tuple[tuple[int, ...], tuple[int, ...]]
"""Layers of the low and of the high band."""

RELEASED_BANDS = {0.1: (1, 1), 0.2: (2, 2), 0.3: (4, 3), 0.4: (4, 4), 0.5: (6, 6)}
"""Layers in the low and the high band of the released code, by tau, for models of 12 layers (**C**). At its default,
0.3, the bands are not of one size: blocks 0-3 and 9-11."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerDependency:
    """How much each layer draws on each earlier one."""

    graph: EdgeGraph
    """The architecture."""
    per_image: Float[np.ndarray, "image source target"]
    """Signed scores times the sign of their mean, summed; `target` has one more entry than there are layers: out."""

    @property
    def total(self) -> Float[np.ndarray, "source target"]:
        """Lambda."""
        return self.per_image.mean(0)

    @property
    def n_edges(self) -> Int[np.ndarray, "source target"]:
        """How many edges each sum runs over."""
        source, target = layers_of(self.graph)
        return _gather(np.ones((len(source), 1)), source, target, self.graph.n_layers)[0].astype(np.int64)


def layers_of(graph: EdgeGraph) -> tuple[Int[np.ndarray, " edge"], Int[np.ndarray, " edge"]]:
    """Layer that each edge comes from (-1: the embedding) and goes to (`n_layers`: the output).

    Example:
        >>> source, target = layers_of(EdgeGraph((2, 2)))
        >>> int(source.min()), int(target.max())
        (-1, 2)
    """
    writers = np.array([graph.depth(name)[0] for name in graph.writers])
    readers = np.array([graph.depth(graph.node_of(name))[0] for name in graph.readers])
    return writers[graph.places[:, 0]], readers[graph.places[:, 1]]


def layer_dependency(scores: Any, *, graph: EdgeGraph | None = None, metric: str | None = None) -> LayerDependency:
    """Edge scores gathered by layer.

    Args:
        scores: as in :func:`circuits.comparison.scores.edge_scores`.
        graph: the architecture, for scores as an array.
        metric: which metric of a result.

    Raises:
        BadData, ShapeMismatch, NotFinite: as there.

    Example:
        >>> layer_dependency(np.ones(13), graph=EdgeGraph((2,))).total     # 2 heads to the MLP; all three to out
        array([[2., 3.]])
    """
    known = edge_scores(scores, graph, metric)
    source, target = layers_of(known.graph)
    signed = known.values.astype(np.float64) * np.sign(known.weights)[:, None]
    return LayerDependency(graph=known.graph, per_image=_gather(signed, source, target, known.graph.n_layers))


def _gather(values: np.ndarray, source: np.ndarray, target: np.ndarray, n: int) -> np.ndarray:
    """`[edge image]` summed by layers to `[image source target]`; edges of the embedding are left out."""
    inner = source >= 0
    found = np.zeros((n * (n + 1), values.shape[1]))
    np.add.at(found, source[inner] * (n + 1) + target[inner], values[inner])
    return found.T.reshape(-1, n, n + 1)


def bands_of(n_layers: int, tau: float = 0.3, bands: Any = None, *, released: bool = False) -> Bands:
    """The low and the high layers that are compared.

    Args:
        n_layers: layers of the model.
        tau: share of the layers in each band: `floor(tau * n_layers)` at both ends (**X**).
        bands: instead of tau: two numbers of layers (first so many, last so many), or two lists of layers.
        released: the bands of the released code (:data:`RELEASED_BANDS`).

    Raises:
        OutOfRange: tau outside 0 to 0.5, bands that are empty or overlap, layers that are none.
        BadData: released bands for another tau or depth than they are defined for.

    Example:
        >>> bands_of(12), bands_of(12, released=True)
        (((0, 1, 2), (9, 10, 11)), ((0, 1, 2, 3), (9, 10, 11)))
    """
    if bands is not None:
        low, high = bands
        low = tuple(range(low)) if isinstance(low, int) else tuple(low)
        high = tuple(range(n_layers - high, n_layers)) if isinstance(high, int) else tuple(high)
    elif released:
        if n_layers != 12 or tau not in RELEASED_BANDS:
            raise BadData(
                f"the released bands are for 12 layers and tau of {', '.join(map(str, RELEASED_BANDS))}; asked: "
                f"{n_layers} layers, tau={tau:g}. Pass bands=(low, high), or leave the preset out."
            )
        n_low, n_high = RELEASED_BANDS[tau]
        low, high = tuple(range(n_low)), tuple(range(12 - n_high, 12))
    else:
        if not 0 < tau <= 0.5:
            raise OutOfRange(f"tau={tau}: the share of layers in each band lies above 0 and is at most 0.5.")
        n = int(np.floor(tau * n_layers + 1e-9))
        if n < 1:
            raise OutOfRange(f"tau={tau:g} of {n_layers} layers is less than one layer; pass bands=(1, 1).")
        low, high = tuple(range(n)), tuple(range(n_layers - n, n_layers))
    outside = [layer for layer in (*low, *high) if not 0 <= layer < n_layers]
    if not low or not high or outside or set(low) & set(high):
        raise OutOfRange(
            f"bands {low} and {high} of a model with {n_layers} layers: both need layers from 0 to {n_layers - 1}, and "
            "none in common."
        )
    return low, high


def band_edges(graph: EdgeGraph, targets: Targets, bands: Bands) -> tuple[np.ndarray, np.ndarray]:
    """Which edges count for the low and for the high band: bool `[edge]` each.

    Args:
        graph: the architecture.
        targets: `out`: edges into the output; `deep`: into the layers of the high band and the output; `global`: all.
        bands: from :func:`bands_of`.

    Raises:
        UnknownName: another word for targets.
    """
    source, target = layers_of(graph)
    counted = np.isin(target, target_layers(graph.n_layers, targets, bands))
    return np.isin(source, bands[0]) & counted, np.isin(source, bands[1]) & counted


def target_layers(n_layers: int, targets: Targets, bands: Bands) -> tuple[int, ...]:
    """The layers j that count as targets; `n_layers` is the output.

    Raises:
        UnknownName: another word for targets.
    """
    if targets not in TARGETS:
        raise unknown("kind of targets", targets, TARGETS)
    return {"out": (n_layers,), "deep": (*bands[1], n_layers), "global": tuple(range(n_layers + 1))}[targets]
