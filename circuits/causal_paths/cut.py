"""A model in which some edges between units carry their mean, run from front to back.

It serves two ends: applied to new images it is the edited model (a repair that can be taken back, since the user's
model is not touched), and it is the plain twin of the fast effects: one whole forward per set of edges.

Where several edges are cut, later units see what the earlier cuts have made; each carries its mean instead of what its
writer does in *this* run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuits.causal_paths.nodes import OUT, edge_ends, unit_of
from circuits.causal_paths.reading import Norm, Reader, written
from circuits.causal_paths.runs import Recording, picked
from mechvis import block as plain
from mechvis.axes import Logits, Pixels
from mechvis.errors import BadData
from mechvis.units import Unit


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PathCut:
    """A model without some edges; the model itself stays as it is.

    Raises:
        BadData: no edge, or the name of none.
        UnknownName, OutOfRange: a unit that does not exist.

    Example:
        >>> mended = PathCut(model=model, edges=("L1N4->L2N9",), means=means)                       # doctest: +SKIP
        >>> mended(pixels).shape                                                                   # doctest: +SKIP
        torch.Size([8, 10])
    """

    model: Any
    """A wrapped model."""
    edges: tuple[str, ...]
    """Edges between units, or to `out`."""
    means: Recording
    """What they carry instead (:func:`circuits.causal_paths.runs.mean_run`)."""
    norm: Norm = "frozen"
    """How the norm of the reading unit sees the change."""

    def __post_init__(self):
        if not self.edges:
            raise BadData("no edge to cut.")
        for edge in self.edges:
            edge_ends(self.model, edge)

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> Logits:
        """The output with the edges cut.

        Args:
            pixels: `[image channel height width]`, or an `ImageSet`.
        """
        model, parts = self.model, self.model.parts
        pixels = model.inputs(pixels)
        model._check_mode()
        layout = None if parts.layout is None else parts.layout(tuple(pixels.shape[2:]))
        reader = Reader(model, self.norm)
        cut = self._by_reader()
        wrote: dict[str, Tensor] = {}
        sources = {name: unit_of(name) for names in cut.values() for name in names}
        x = parts.embed(pixels)
        for layer, block in enumerate(parts.blocks):
            z = plain.heads(block, block.ln1(x), layout).clone()
            # A recording of which only what the reading unit reads is filled.
            run = _partial(layer, len(parts.blocks), pre=x)
            for name, names in _readers(cut, layer, "heads"):
                change = sum(wrote[source] for source in names)
                z[:, :, name.index] = reader.value(name, run, layout, change[None])[0]
            _remember(model, wrote, sources, layer, "heads", z, self.means.z[layer])
            mid = x + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
            post = plain.neurons(block, block.ln2(mid)).clone()
            run = _partial(layer, len(parts.blocks), mid=mid)
            for name, names in _readers(cut, layer, "neurons"):
                change = sum(wrote[source] for source in names)
                post[..., name.index] = reader.value(name, run, layout, change[None])[0]
            _remember(model, wrote, sources, layer, "neurons", post, self.means.post[layer])
            x = mid + plain.scaled(block.scale2, block.mlp_out(post))
        if OUT in cut:
            run = Recording(pre=(), z=(), mid=(), post=(), final=x)
            return reader.out(run, sum(wrote[source] for source in cut[OUT])[None])[0]
        return plain.read_out(parts, x, picked(parts))

    def without(self) -> Any:
        """The model as it was."""
        return self.model

    def _by_reader(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for edge in dict.fromkeys(self.edges):
            writer, reader = edge.split("->")
            found.setdefault(reader, []).append(writer)
        return found

    def __repr__(self) -> str:
        some = ", ".join(self.edges[:4]) + (" ..." if len(self.edges) > 4 else "")
        return f"PathCut({self.model.title!r} without {some}; norms {self.norm})"


def _readers(cut: dict[str, list[str]], layer: int, kind: str) -> Iterable[tuple[Unit, list[str]]]:
    for name, names in cut.items():
        if name != OUT and (unit := unit_of(name)).layer == layer and unit.kind == kind:
            yield unit, names


def _remember(
    model: Any, wrote: dict[str, Tensor], sources: dict[str, Unit], layer: int, kind: str, own: Tensor, mean: Tensor
) -> None:
    """What the cut writers of a layer write more than on average."""
    for name, unit in sources.items():
        if unit.layer == layer and unit.kind == kind:
            change = own - mean
            change = change[..., unit.index] if kind == "neurons" else change[:, :, unit.index]
            wrote[name] = written(model, unit, change)


def _partial(layer: int, n_layers: int, *, pre: Tensor | None = None, mid: Tensor | None = None) -> Recording:
    """A recording that holds the stream of one place only."""

    def at(value: Tensor | None) -> tuple:
        return tuple(value if index == layer else None for index in range(n_layers))

    return Recording(pre=at(pre), z=(), mid=at(mid), post=(), final=None)


def path_cut(model: Any, edges: str | Iterable[str], means: Recording, *, norm: Norm = "frozen") -> PathCut:
    """A model without some edges.

    Args:
        model: a wrapped model.
        edges: names such as `L0N7->L1N2`, `L1H0->out`.
        means: what they carry instead.
        norm: `frozen` or `recomputed`.

    Raises:
        BadData, UnknownName, OutOfRange.
    """
    chosen = (edges,) if isinstance(edges, str) else tuple(edges)
    return PathCut(model=model, edges=chosen, means=means, norm=norm)
