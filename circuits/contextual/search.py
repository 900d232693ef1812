"""Circuit search by contextual decomposition, from the output backwards (methods2.md 15.3; CD-T **C**).

1. Iteration 0: the score of every node is its part of the logit difference, averaged over images. The `k` best stay.
2. Iteration i: their targets are the nodes that were found last. The score of every node before one of them is its
   relevance, summed over the targets and divided by the sum over its block (so that late blocks do not win by being
   near). The `k` best stay; new ones are the next targets.
3. Until nothing new is found, or `max_iter`.
4. Greedy pruning, where a measure of faithfulness is given: from the last found and weakest on, a node goes if
   faithfulness falls by less than `max_drop`.

Which paths: with `paths="all"` (the released code) what a node passes on counts as its own. A head that feeds two
readers then outranks both in iteration 0: on the planted two-step circuit of `ShortcutViT` the two best nodes for the
output are the first step and one half of the second, and the other half is never found with `k=2`. So the default is
`paths="direct"` (**X**): an iteration finds who writes to the targets itself, and edges are edges.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from circuits.circuit import Circuit
from circuits.contextual.passes import setup
from circuits.contextual.relevance import Normalise, by_layer, reachable, relevances
from circuits.contextual.rules import Rules
from circuits.contextual.scores import scores
from circuits.contextual.sources import Source, sources_of
from circuits.contextual.targets import Target, targets_of
from circuits.edges.graph import INPUTS, EdgeGraph
from mechvis.errors import BadData, NotFinite, OutOfRange, unknown

Faithfulness = Callable[[frozenset[str]], float]
"""Names of nodes -> faithfulness of the circuit made of them (1: all that the model does; methods.md 5.7)."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What one node passes to another."""

    source: str
    """Node that writes."""
    target: str
    """Node that reads, or `out`."""
    at: str
    """Where it reads: `z` (all of a head), `q`, `k`, `v`, `out` (all of an MLP), `logits`."""
    r: float
    """Relevance, averaged over images: for a component the ratio between 0 and 1; for `out` the part in logits."""
    projected: float | None
    """Signed relevance, averaged over images; None for `out`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One iteration."""

    targets: tuple[str, ...]
    """What nodes were scored against."""
    scores: dict[str, float] = field(repr=False)
    """Score of every node that could be chosen."""
    chosen: tuple[str, ...]
    """The best, in order."""
    new: tuple[str, ...]
    """Those that were not in the circuit yet: the next targets."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found, as plain data."""

    nodes: tuple[str, ...]
    """The circuit, in the order in which its nodes were found; without those that were pruned."""
    edges: tuple[Edge, ...]
    """Edges between its nodes, and to `out`, with a relevance above `tau`. Where `max_iter` ended the search, what the
    nodes found last read was not looked at."""
    steps: tuple[Step, ...] = field(repr=False)
    """Every iteration."""
    pruned: tuple[str, ...]
    """Nodes that were found and then dropped."""
    faithfulness: tuple[tuple[int, float], ...]
    """(number of nodes, faithfulness) before pruning and after each node that was dropped; empty without pruning."""
    provenance: dict[str, Any] = field(repr=False)
    """Where it comes from."""

    def circuit(self, model: Any) -> Circuit:
        """The same as a `Circuit`, to be judged, drawn and saved: a head that reads as a whole reads by q, k and v.

        Nodes that nothing was found to feed are fed by the embedding, so that they are on a path. Scores are the signed
        relevance where there is one.

        Args:
            model: the model that was searched.

        Example:
            >>> circuits.evaluate(found.circuit(model), task)                                      # doctest: +SKIP
        """
        graph = EdgeGraph.of(model)
        scores: dict[str, float] = {}
        fed = {edge.target for edge in self.edges}
        listed = [
            (edge.source, edge.target, edge.at, edge.r if edge.projected is None else edge.projected)
            for edge in self.edges
        ]
        listed += [("embed", node, "z", float("nan")) for node in self.nodes if node not in fed and node != "embed"]
        for source, target, at, score in listed:
            inputs = (
                [target]
                if target == "out" or "H" not in target
                else [f"{target}.{kind}" for kind in (INPUTS if at == "z" else (at,))]
            )
            for reader in inputs:
                scores[f"{source}->{reader}"] = score
        values = np.full(graph.shape, np.nan)
        for edge, score in scores.items():
            values[graph.edge(edge)] = score
        return Circuit(
            graph=graph,
            kept=graph.mask(scores),
            scores=None if np.isnan(values).all() else values,
            title=f"CD-T, {len(self.nodes)} nodes",
            model=self.provenance.get("model") or {},
            provenance=self.provenance,
        )


def contextual_circuit(
    model: Any,
    images: Any,
    *,
    nodes: Any = "heads",
    k: int | Literal["elbow"] = 4,
    max_iter: int = 6,
    tau: float = 0.0,
    at: Sequence[str] = ("z",),
    tokens: Any = None,
    normalise: Normalise = "layer",
    paths: Literal["all", "direct"] = "direct",
    faithfulness: Faithfulness | None = None,
    max_drop: float = 0.01,
    rules: str | Rules = "default",
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "mean_positional",
    reference: Any = None,
    source: Any = None,
    labels: Literal["given", "predicted"] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Found:
    """Search a circuit of nodes from the output backwards.

    Args:
        model: a wrapped model with a head.
        images: an `ImageSet`, pixels, or `circuits.pairs.Pairs`.
        nodes: what a circuit is made of: `heads`, `mlp_out`, or a list of names (`L0H1`, `L0MLP`, `embed`).
        k: nodes per iteration (the released notebooks: 2), or `elbow`: those before the bend of the ranked
            scores.
        max_iter: at most so many iterations, the first included.
        tau: edges need a relevance above this.
        at: activations of a head that count as reading: `z`, or some of `q`, `k`, `v`.
        tokens: look at targets at these tokens only, as in :func:`relevance_to`.
        normalise: `layer`, or None.
        paths: `direct`, or `all` as in the released code; see the module.
        faithfulness: names of nodes -> faithfulness, for pruning; None: nothing is pruned.
        max_drop: a node goes if faithfulness falls by less.
        rules, edit, reference, source, labels, batch_size, seed, progress, allow_overlap: as for :func:`contextual`.

    Raises:
        OutOfRange: k, max_iter or max_drop that cannot be.
        BadData: nodes that are no components, or none supports the output.
        NotFinite: faithfulness that is not finite. Further as :func:`contextual`.

    Example:
        >>> found = contextual_circuit(model, images, k="elbow")                                   # doctest: +SKIP
        >>> found.nodes                                                                            # doctest: +SKIP
        ('L1H1', 'L1H0', 'L0H0')
    """
    _check(k, max_iter, max_drop, at)
    listed = [_whole(node) for node in sources_of(model, nodes)]
    ready = setup(
        model,
        images,
        listed,
        rules=rules,
        edit=edit,
        reference=reference,
        source=source,
        groups=None,
        layers=None,
        labels=labels,
        paths=paths,
        batch_size=batch_size,
        seed=seed,
        allow_overlap=allow_overlap,
    )
    names = [node.name for node in listed]
    values, _ = scores(ready, ("logit_diff", None, None), progress=progress)
    to_output = dict(zip(names, values.mean(1).tolist(), strict=True))
    first = _best(to_output, k)
    if not first:
        raise BadData("no node supports the output: every score is 0 or negative. Look at contextual(...) first.")
    steps = [Step(targets=("out",), scores=to_output, chosen=first, new=first)]
    circuit, relevance = list(first), dict[tuple[str, str, str], tuple[float, float]]()
    while len(steps) < max_iter:
        targets = [target for node in steps[-1].new for target in _targets(model, node, at)]
        targets = [t for t, row in zip(targets, reachable(model, ready, targets), strict=True) if row.any()]
        if not targets:
            break
        ratio, projected = relevances(model, ready, targets, tokens=tokens, progress=progress)
        relevance |= {
            (names[s], target.node, target.at): (float(ratio[t, s].mean()), float(projected[t, s].mean()))
            for t, target in enumerate(targets)
            for s in range(len(names))
        }
        reach = reachable(model, ready, targets)
        total = (ratio * reach[..., None]).sum(0, keepdims=True)
        if normalise == "layer":
            total = by_layer(total, [node.layer for node in listed], reach.any(0, keepdims=True))
        score = {name: float(total[0, s].mean()) for s, name in enumerate(names) if reach[:, s].any()}
        chosen = _best(score, k)
        new = tuple(name for name in chosen if name not in circuit)
        steps.append(Step(targets=tuple(target.name for target in targets), scores=score, chosen=chosen, new=new))
        circuit += new
        if not new:
            break
    kept, pruned, track = _prune(circuit, steps, faithfulness, max_drop)
    edges = [Edge(source=n, target="out", at="logits", r=to_output[n], projected=None) for n in first if n in kept]
    edges += [
        Edge(source=one, target=other, at=where, r=r, projected=signed)
        for (one, other, where), (r, signed) in relevance.items()
        if one in kept and other in kept and r > tau
    ]
    return Found(
        nodes=tuple(kept),
        edges=tuple(edges),
        steps=tuple(steps),
        pruned=tuple(pruned),
        faithfulness=tuple(track),
        provenance=ready.provenance(
            search={"k": k, "max_iter": max_iter, "tau": tau, "at": list(at), "normalise": normalise}
        ),
    )


def _check(k: Any, max_iter: int, max_drop: float, at: Sequence[str]) -> None:
    if k != "elbow" and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise OutOfRange(f"k={k!r}: give at least 1 node per iteration, or 'elbow'.")
    if max_iter < 1:
        raise OutOfRange(f"max_iter={max_iter}: give at least 1.")
    if not 0 <= max_drop <= 1:
        raise OutOfRange(f"max_drop={max_drop}: a fall of faithfulness between 0 and 1.")
    if isinstance(at, str) or not at or not set(at) <= {"z", "q", "k", "v"}:
        raise unknown("activation of a head in at=", at, ("z", "q", "k", "v"))


def _whole(node: Source) -> Source:
    """A node that circuits know: the embedding, a head, an MLP."""
    site = node.pieces[0].site
    whole = len(node.pieces) == 1 and node.pieces[0].tokens is None
    if not whole or not (site.endswith(("attn.hook_z", "hook_mlp_out")) or node.name == "embed"):
        raise BadData(f"{node.name!r} is no node of a circuit: those are heads, MLPs and the embedding, each whole.")
    return node


def _targets(model: Any, node: str, at: Sequence[str]) -> list[Target]:
    """What a node reads; the embedding reads nothing."""
    if node == "embed":
        return []
    if "MLP" in node:
        return targets_of(model, [node])
    return targets_of(model, [f"{node}.{where}" for where in at])


def _best(score: dict[str, float], k: int | str) -> tuple[str, ...]:
    """The best nodes with a positive score: `k` of them, or those before the elbow of the ranked scores, which is
    where they lie farthest below the line from the best score to 0 at the end (of all nodes, and one more)."""
    ranked = sorted((name for name in score if score[name] > 0), key=lambda name: -score[name])
    if k != "elbow":
        return tuple(ranked[:k])
    if not ranked:
        return ()
    values = np.zeros(len(score) + 1)
    values[: len(ranked)] = [score[name] for name in ranked]
    below = np.linspace(values[0], 0, len(values)) - values
    return tuple(ranked[: int(np.argmax(below))] if below.max() > 0 else ranked)


def _prune(
    circuit: Collection[str], steps: Sequence[Step], faithfulness: Faithfulness | None, max_drop: float
) -> tuple[list[str], list[str], list[tuple[int, float]]]:
    """Drop nodes, from the last found and weakest on, that faithfulness does not need."""
    kept, pruned = list(circuit), []
    if faithfulness is None:
        return kept, pruned, []
    current = _finite(faithfulness(frozenset(kept)))
    track = [(len(kept), current)]
    order = [name for step in reversed(steps) for name in reversed(step.new)]
    for name in order:
        if len(kept) == 1:
            break
        without = _finite(faithfulness(frozenset(kept) - {name}))
        if current - without < max_drop:
            kept.remove(name)
            pruned.append(name)
            current = without
            track.append((len(kept), current))
    return kept, pruned, track


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise NotFinite(f"faithfulness= returned {value}.")
    return float(value)
