"""Edges that are cut for good: always at run time.

An edge is what one component contributes to one input of another: `L0H1->L1H2.q`. The weights have no such place. The
stream is a sum, `W_O` of the writer reaches all readers and `W_Q` of the reader reads all writers, so whatever is taken
out of either is taken out of other edges too; and the reader's LayerNorm divides by a length that depends on the whole
sum. So an edited model is the user's model, a mask of edges, and what a cut edge carries instead: a few lines of JSON
and some tensors, applied at every call (:func:`circuits.edges.gated.gated`).

Only if every edge of a component is cut, by zeros or a mean over tokens, is that the removal of the component, which
:mod:`circuits.editing.head_removal` writes into weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuits.circuit import Circuit
from circuits.edges.base import Outputs, mean_outputs, record, zeros
from circuits.edges.gated import gated
from circuits.edges.graph import EdgeGraph
from circuits.edges.wiring import wiring
from mechvis.axes import Logits, Pixels
from mechvis.errors import BadData, RefusedMethod, ResultMismatch, unknown

Ablation = Literal["zero", "mean", "mean_positional"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeCut:
    """Edges, and what they carry instead."""

    kind: ClassVar[str] = "edges"

    graph: EdgeGraph
    """The architecture."""
    cut: Bool[np.ndarray, "writer reader"]
    """The edges."""
    ablation: str
    """`zero`, `mean` or `mean_positional`."""
    base: Outputs | None = None
    """For the means: what components write on average, one row."""
    ids: frozenset[str] = field(default=frozenset(), repr=False)
    """Images that the means were made of."""

    def __post_init__(self):
        if not (self.cut & self.graph.allowed).any():
            raise BadData("no edge to cut: the selection is empty.")
        if (self.base is None) != (self.ablation == "zero"):
            raise BadData(f"ablation={self.ablation!r} {'uses no' if self.ablation == 'zero' else 'needs'} means.")

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the edges that are cut."""
        return self.graph.names(self.cut)

    @property
    def circuit(self) -> Circuit:
        """What is left."""
        return Circuit(graph=self.graph, kept=self.graph.allowed & ~self.cut, title=f"what is left: {self.words}")

    @property
    def words(self) -> str:
        """What is done, in words."""
        names = self.edges
        some = ", ".join(names[:3]) + (f" ... ({len(names)} edges)" if len(names) > 3 else "")
        return f"{some} cut ({self.ablation})"

    @property
    def reference_ids(self) -> frozenset[str]:
        """Images that the means were made of."""
        return self.ids

    @torch.no_grad()
    def run(self, model: Any, pixels: Pixels) -> Logits:
        """The model's output with these edges cut.

        Raises:
            ResultMismatch: a model of another architecture.
        """
        if EdgeGraph.of(model) != self.graph:
            raise ResultMismatch(f"these edges are of {self.graph!r}, the model given has {EdgeGraph.of(model)!r}.")
        clean = record(model, pixels)
        base = zeros(clean) if self.base is None else self.base.map(lambda value: value.to(model.device, model.dtype))
        gates = torch.from_numpy(self.graph.allowed & ~self.cut)[None]
        return gated(model, clean, base, gates, wires=wiring(model, clean))[0]

    def fold(self, model: Any) -> Any:
        """Never.

        Raises:
            RefusedMethod: says why.
        """
        whole = self._whole_heads()
        more = ""
        if whole and self.ablation != "mean_positional":
            more = f" Here every edge of {', '.join(whole)} is cut: remove_heads writes that into weights."
        raise RefusedMethod(
            "an edge cannot be written into weights: what a component writes reaches all readers, and a reader's norm "
            f"couples everything that it reads. It is kept at run time.{more}"
        )

    def _whole_heads(self) -> list[str]:
        every = self.graph.allowed
        return [
            name
            for place, name in enumerate(self.graph.writers)
            if "H" in name and bool((self.cut[place] == every[place]).all())
        ]

    def random(self, model: Any, images: Any, draws: int, seed: int) -> list["EdgeCut"]:
        """As many other edges between the same layers and kinds of component.

        Raises:
            BadData: there are none.
        """
        from circuits.evaluation.random_circuits import random_circuits

        masks, _ = random_circuits(self.graph, self.cut & self.graph.allowed, draws, how="edges", seed=seed)
        return [
            EdgeCut(graph=self.graph, cut=mask, ablation=self.ablation, base=self.base, ids=self.ids) for mask in masks
        ]

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "n_heads": list(self.graph.n_heads),
            "edges": list(self.edges),
            "ablation": self.ablation,
            "ids": sorted(self.ids),
        }

    def tensors(self) -> dict[str, Tensor]:
        """What cut edges carry."""
        if self.base is None:
            return {}
        pairs = zip(self.base.z, self.base.mlp, strict=True)
        layers = {f"{name}/{layer}": v for layer, pair in enumerate(pairs) for name, v in zip("zm", pair, strict=True)}
        return {"embed": self.base.embed, **layers}

    @classmethod
    def read(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> "EdgeCut":
        """From what `describe` and `tensors` gave."""
        graph = EdgeGraph(tuple(int(n) for n in facts["n_heads"]))
        base = None
        if tensors:
            z, mlp = (tuple(tensors[f"{name}/{layer}"] for layer in range(graph.n_layers)) for name in "zm")
            base = Outputs(tensors["embed"], z, mlp)
        mask = graph.mask(facts["edges"])
        return cls(graph=graph, cut=mask, ablation=facts["ablation"], base=base, ids=frozenset(facts["ids"]))


def edge_cut(model: Any, edges: Circuit | Iterable[str], *, keep: bool, ablation: str, reference: Any) -> EdgeCut:
    """Check and settle a cut of edges in a model.

    Args:
        model: a `HookedViT`.
        edges: a circuit, or names.
        keep: cut everything but these.
        ablation: see :class:`EdgeCut`.
        reference: images for the means.

    Raises:
        UnknownName: no such ablation, component or input.
        BadData: a name that is no edge; nothing to cut; means without reference images, or the reverse.
        ResultMismatch: a circuit of another architecture.
        UnsupportedModel: a stream that is no sum of components.
    """
    if ablation in ("patch", "resample"):
        raise BadData(
            f"ablation={ablation!r} takes what another image has, and an edited model answers to one image alone. Use "
            f"{', '.join(ABLATIONS)}."
        )
    if ablation not in ABLATIONS:
        raise unknown("ablation of an edited model", ablation, ABLATIONS)
    graph = EdgeGraph.of(model)
    if isinstance(edges, Circuit):
        edges.check_model(model)
        chosen = edges.kept
    else:
        chosen = graph.mask([edges] if isinstance(edges, str) else edges)
    cut = graph.allowed & ~chosen if keep else chosen
    if ablation == "zero":
        if reference is not None:
            raise BadData("reference images are for means; ablation='zero' uses none. Leave reference= out.")
        return EdgeCut(graph=graph, cut=cut, ablation=ablation)
    if reference is None:
        raise BadData(f"ablation={ablation!r} needs reference= images, other ones than those that are measured.")
    base = mean_outputs(model, model.inputs(reference), positional=ablation == "mean_positional")
    return EdgeCut(graph=graph, cut=cut, ablation=ablation, base=base, ids=frozenset(getattr(reference, "ids", ())))
