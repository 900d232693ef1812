"""Path patching: what one component does to another along one path, and to the output from there (methods.md 5.2
**K**).

A path is a sender, components on the way, and a receiver: `["L0H1", "L1H2.q", "out"]`. Along it,

1. the sender writes what it writes on the base instead;
2. each component on the way reads that difference, in the named input only (`L1H2.q`; `L1H2`: queries, keys and
   values), everything else that it reads is the clean run's: it answers with a difference of its own;
3. the receiver reads the last difference. If it is `out`, that is the effect; otherwise the run goes on from its
   answer, with everything after it computed anew.

`direct_only=True` (default **X**): between two components of the path the difference goes through the stream alone.
`direct_only=False`: the MLPs between them are not frozen, so it may also go through them (but through no other head).

Only differences are computed, from the recorded clean run: a sender's write, one head's attention or one MLP per step.
A path of one edge is what :func:`circuits.edge_patching.patch_edges` measures. The plain twin is three runs with
everything else frozen by edits; the tests have it.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuits.edges.graph import INPUTS, EdgeGraph
from circuits.edges.inputs import project
from circuits.task import Batch, Task
from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.errors import BadData, NotFinite
from mechvis.progress import track
from mechvis.results import Result


def path_patch(
    task: Task,
    paths: Iterable[Sequence[str]] | None = None,
    *,
    senders: Iterable[str] | None = None,
    receivers: Iterable[str] | None = None,
    direct_only: bool = True,
    progress: bool = True,
    seed: int = 0,
) -> Result:
    """Exact effect of paths: m(clean) - m(along this path, the sender's base), per image.

    Args:
        task: images, ablation, metric (:func:`circuits.task`).
        paths: each a list of a sender, components on the way, and a receiver, e.g. `["L0H1", "L1H2.q", "out"]`.
        senders: instead of paths: all paths of one step from these components ...
        receivers: ... to these inputs, where the sender comes before. Default of either: all.
        direct_only: False: MLPs between the components of a path are computed anew too.
        progress: show a progress bar.
        seed: of the bootstrap.

    Returns:
        Result: one row per path, named `L0H1->L1H2.q->out`, effects in the metric's unit.

    Raises:
        UnknownName: a component that does not exist.
        BadData: a path that is too short, not in the order of the forward pass, or no path at all.
        NotFinite: a path gives NaN or Inf.

    Example:
        >>> circuits.path_patch(task, [["L0H1", "L1H2.q", "out"]])                                 # doctest: +SKIP
        >>> circuits.path_patch(task, receivers=["L3H1.q", "L3H1.k", "L3H1.v"])                    # doctest: +SKIP
    """
    listed = _paths(task.graph, paths, senders, receivers)
    values = path_effects(task, listed, direct_only=direct_only, progress=progress)
    units = [
        {"unit": "->".join(path), "sender": path[0], "receiver": path[-1], "steps": len(path) - 1} for path in listed
    ]
    how = "directly" if direct_only else "through MLPs too"
    return Result.from_values(
        "path_patching",
        f"Path patching, {how} ({task.ablation})",
        units,
        {task.metric_name: values},
        images=task.image_table(),
        provenance=task.provenance(paths={"direct_only": direct_only, "n": len(listed)}),
        baseline={task.metric_name: float(task.full.mean())},
        seed=seed,
    )


@torch.no_grad()
def path_effects(
    task: Task, paths: Sequence[Sequence[str]], *, direct_only: bool = True, progress: bool = False
) -> Float[np.ndarray, "path image"]:
    """Effects of checked paths per image; see :func:`path_patch`."""
    found = np.empty((len(paths), len(task)))
    with track(len(paths) * len(task), "paths", " rows", show=progress) as bar:
        for batch in task.batches(task.rows_at_once(n_forks=1)):
            clean = task.score(batch.logits, batch)
            for row, path in enumerate(paths):
                output = _along(task, batch, path, direct_only)
                effect = clean - task.score(output, batch)
                if not torch.isfinite(effect).all():
                    raise NotFinite(f"the path {'->'.join(path)} gives NaN or Inf.")
                found[row, batch.rows.start : batch.rows.stop] = effect.double().cpu().numpy()
                bar.update(len(batch.rows))
    return found


def _along(task: Task, batch: Batch, path: Sequence[str], direct_only: bool) -> Tensor:
    """The output with a difference sent along a path."""
    graph = task.graph
    change = written_difference(task, batch, path[0])
    at = path[0]
    for step in path[1:-1]:
        change = change if direct_only else through_mlps(task, batch, change, at, step)
        change, at = answer(task, batch, change, step), graph.node_of(step)
    last = path[-1]
    change = change if direct_only else through_mlps(task, batch, change, at, last)
    if last == "out":
        return _read_out(task, batch.clean.streams[-1] + change)
    change = answer(task, batch, change, last)
    layer, is_mlp = graph.depth(graph.node_of(last))
    x = _mid(task, batch, layer)
    if is_mlp:
        x = x + batch.clean.mlp[layer] + change
    else:
        x = x + change
        x = x + plain.mlp(task.model.parts.blocks[layer], x)
    for block in task.model.parts.blocks[layer + 1 :]:
        x = plain.plain(block, x, batch.clean.layout)
    return _read_out(task, x)


def written_difference(task: Task, batch: Batch, writer: str) -> Residual:
    """What a component writes on the base less what it writes on the clean images `[image token d_model]`."""
    clean, base = batch.clean, batch.base
    if writer == "embed":
        return base.embed - clean.embed
    layer, is_mlp = task.graph.depth(writer)
    if is_mlp:
        return base.mlp[layer] - clean.mlp[layer]
    head = task.graph.writer(writer) - task.graph.writers_of(layer).start
    change = base.z[layer][:, :, head] - clean.z[layer][:, :, head]
    return einsum(change, task.wires.out[layer][head], "image token e, e d -> image token d")


def answer(task: Task, batch: Batch, change: Residual, reader: str) -> Residual:
    """How a component's write changes when one of its inputs reads a difference.

    Args:
        task: whose model it is.
        batch: the clean run.
        change: what is added to what it reads.
        reader: `L1MLP`, `L1H2.q`, or `L1H2` for all three inputs of the head.
    """
    graph, clean, parts = task.graph, batch.clean, task.model.parts
    node = graph.node_of(reader)
    layer, is_mlp = graph.depth(node)
    block = parts.blocks[layer]
    if is_mlp:
        return plain.mlp(block, _mid(task, batch, layer) + change) - clean.mlp[layer]
    head = graph.writer(node) - graph.writers_of(layer).start
    kinds = [reader.split(".")[1]] if "." in reader else list(INPUTS)
    pre = clean.streams[layer]
    normalised = block.ln1(pre)
    inputs = {}
    for kind in INPUTS:
        own = project(block.attn, kind, normalised)
        if kind in kinds:
            fork = task.wires.inputs[layer].of(kind, torch.tensor([head], device=pre.device), (pre + change)[None])
            own = own.expand(len(change), *own.shape[1:]).clone()
            own[:, :, head] = fork[0]
        inputs[kind] = own
    q, k = plain.place(block.attn, inputs["q"], inputs["k"], clean.layout)
    z = plain.finish(block.attn, plain.mix(block.attn, q, k, inputs["v"], clean.layout))
    # Where a norm after the mixing sees all heads, the other heads' z changes too; the answer is the head's own.
    own = z[:, :, head] - clean.z[layer][:, :, head]
    return einsum(own, task.wires.out[layer][head], "image token e, e d -> image token d")


def through_mlps(task: Task, batch: Batch, change: Residual, sender: str, receiver: str) -> Residual:
    """A difference in the stream after the MLPs between two components have answered to it."""
    graph = task.graph
    first = graph.depth(sender)
    last = graph.depth(graph.node_of(receiver))
    for layer in range(graph.n_layers):
        if first < (layer, 1) < last:
            mid = _mid(task, batch, layer)
            change = change + plain.mlp(task.model.parts.blocks[layer], mid + change) - batch.clean.mlp[layer]
    return change


def _mid(task: Task, batch: Batch, layer: int) -> Residual:
    """The clean stream between the halves of a layer."""
    block = task.model.parts.blocks[layer]
    write = plain.scaled(block.scale1, block.attn.out(plain.merge(batch.clean.z[layer])))
    return batch.clean.streams[layer] + write


def _read_out(task: Task, stream: Residual) -> Tensor:
    parts = task.model.parts
    reads = list(parts.reads) if isinstance(parts.reads, tuple) else slice(None)
    return plain.read_out(parts, stream, lambda x: x[:, reads])


def _paths(
    graph: EdgeGraph,
    paths: Iterable[Sequence[str]] | None,
    senders: Iterable[str] | None,
    receivers: Iterable[str] | None,
) -> list[tuple[str, ...]]:
    """Checked paths, from either way to say them."""
    if paths is not None and (senders is not None or receivers is not None):
        raise BadData("say paths=, or senders= and receivers=, not both.")
    if paths is None:
        some = list(graph.writers if senders is None else senders)
        ends = list(graph.readers if receivers is None else receivers)
        for name in some:
            graph.writer(name)
        listed = [(sender, end) for end in ends for sender in some if graph.depth(sender) < _depth(graph, end)]
    else:
        listed = [tuple([path] if isinstance(path, str) else path) for path in paths]
    if not listed:
        raise BadData("no path: no sender comes before a receiver, or the list is empty.")
    for path in listed:
        _check(graph, path)
    if len(set(listed)) != len(listed):
        raise BadData("a path is listed twice.")
    return listed


def _check(graph: EdgeGraph, path: tuple[str, ...]) -> None:
    if len(path) < 2:
        raise BadData(f"the path {list(path)!r} needs a sender and a receiver, e.g. ['L0H1', 'L1H2.q', 'out'].")
    graph.writer(path[0])
    depths = [graph.depth(path[0]), *(_depth(graph, step) for step in path[1:])]
    for place, (before, after) in enumerate(itertools.pairwise(depths)):
        if not before < after:
            raise BadData(f"in the path {'->'.join(path)}, {path[place]} does not come before {path[place + 1]}.")


def _depth(graph: EdgeGraph, reader: Any) -> tuple[int, int]:
    """Where a reader stands; `L1H2` stands for all its inputs."""
    if reader in graph.writers and reader != "embed":
        return graph.depth(reader)
    graph.reader(reader)
    return graph.depth(graph.node_of(reader))
