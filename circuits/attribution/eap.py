"""Edge attribution patching: a first-order estimate of every edge's effect, from a few passes (methods.md 5.4).

    score[u -> v] = (out_u - base_u) . dM/d in_v        estimate of m(clean) - m(edge u -> v carries the base)

Positive: the edge supports the behaviour (the reference code has the opposite, "loss", orientation; its scores are ours
times -1). Where the gradient is taken:

==================  ================================================================================================
method              gradient dM/d in_v
==================  ================================================================================================
`eap`               on the clean run (Syed et al. 2023). **Not with `kl` or `js`**: against the clean run itself they
                    are at their optimum, all gradients are zero, and so are all scores (**P**): an error
`ig`                EAP-IG (inputs; Hanna et al. 2024 **C**): mean over runs whose embedding lies on the line from the
                    base's to the clean one's. `rule="midpoint"`, 10 steps, is the default (**X**); `rule="left"` is
                    that of the reference code: it includes the corrupt end and leaves the clean one out
`ig_activations`    the outputs of one layer's heads, or of one MLP, lie on the line, the rest of the run is computed
                    from them; steps k = 1..S (**C**). One path per layer and half, each restarted there
`clean_corrupt`     mean of the two ends only (**C**)
==================  ================================================================================================

Steps are rows of one batch, with one backward for all. Nothing is forked (:mod:`circuits.attribution.gradients`). Where
a gradient vanishes (saturation), `eap` misses what `ig` finds: F3, `in->A`: true 16.0, EAP 0.002, EAP-IG 16.0 (**P**).
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribution.contraction import Differences, contract, to_edges
from circuits.attribution.gradients import reader_gradients, tap
from circuits.edges.graph import EdgeGraph
from circuits.task import Batch, Task
from mechvis import block as plain
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, unknown
from mechvis.metrics import WITHOUT_TARGET
from mechvis.results import Result

Method = Literal["eap", "ig", "ig_activations", "clean_corrupt"]
METHODS = ("eap", "ig", "ig_activations", "clean_corrupt")
Rule = Literal["midpoint", "left", "right"]
RULES = ("midpoint", "left", "right")


def eap(
    task: Task,
    *,
    method: Method = "ig",
    steps: int = 10,
    rule: Rule | None = None,
    verify: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Estimated effect of every edge, with intervals over images.

    Args:
        task: images, ablation, metric (:func:`circuits.task`).
        method: `ig` (default), `eap`, `ig_activations`, `clean_corrupt`; see the module.
        steps: points on the path, for `ig` and `ig_activations`.
        rule: where they lie: `midpoint` (default of `ig`), `left`, or `right` (default of `ig_activations`).
        verify: how many edges to measure exactly, half from the top and half at random: rank and sign agreement come
            with the result. Default: 32 where an exact edge costs little (fewer than 10,000 edges), else none.
        seed: of the bootstrap and of the random edges.
        progress: show a progress bar.

    Returns:
        Result: one row per edge, effects in the metric's unit, per-image values. `provenance["agreement"]` has what the
        exact measurements say.

    Raises:
        RefusedMethod: `eap` with `kl` or `js`.
        OutOfRange, UnknownName, NotFinite, BadData.

    Example:
        >>> scores = circuits.eap(task)                                                            # doctest: +SKIP
        >>> scores.top(10, by="size")                                                              # doctest: +SKIP
    """
    rule = _check(task, method, steps, rule)
    scores = edge_values(task, method=method, steps=steps, rule=rule, progress=progress)
    title = {"eap": "EAP", "clean_corrupt": "EAP, clean and corrupt ends"}.get(
        method, f"EAP-IG ({'inputs' if method == 'ig' else 'activations'}, {steps} steps, {rule})"
    )
    result = edge_result(
        task, scores, kind="edge_attribution", title=title, seed=seed, method=method, steps=steps, rule=rule
    )
    from circuits.attribution.agreement import with_agreement

    if verify is None:
        verify = 32 if task.graph.n_edges < 10_000 else 0
    return with_agreement(result, task, verify, seed=seed, progress=progress) if verify else result


def edge_values(
    task: Task,
    *,
    method: Method = "ig",
    steps: int = 10,
    rule: Rule = "midpoint",
    progress: bool = False,
) -> Float[np.ndarray, "edge image"]:
    """The scores alone, in the order of `task.graph.edges`; see :func:`eap`."""
    found = np.empty((task.graph.n_edges, len(task)), dtype=np.float32 if task.model.dtype != torch.float64 else float)
    repeats = {"eap": 1, "clean_corrupt": 2}.get(method, steps)
    size = max(1, task.rows_at_once(n_forks=4 * max(task.graph.n_heads)) // repeats)
    for batch in task.batches(size, what=method, progress=progress):
        scores = batch_scores(task, batch, method=method, steps=steps, rule=rule)
        found[:, batch.rows.start : batch.rows.stop] = to_edges(scores, task.wires).cpu().numpy()
    if not np.isfinite(found).all():
        edge, image = (int(i) for i in np.argwhere(~np.isfinite(found))[0])
        raise NotFinite(f"the score of {task.graph.edges[edge]} is NaN or Inf on image {task.ids[image]!r}.")
    return found


def batch_scores(
    task: Task, batch: Batch, *, method: Method, steps: int, rule: Rule
) -> Float[Tensor, "image writer reader"]:
    """Scores of one batch."""
    clean, base = batch.clean, batch.base
    scores = clean.embed.new_zeros(len(clean), *task.graph.shape)
    if method == "ig_activations":
        _along_activations(task, batch, scores, path(steps, rule))
        return scores
    points = {"eap": [1.0], "clean_corrupt": [1.0, 0.0]}.get(method) or path(steps, rule)
    stream = interpolated(clean.embed, base.embed, points)
    taps = tap(task.model, stream, _metric(task, batch, len(points)), clean.layout)
    with torch.no_grad():
        differences = Differences.of(clean, base)
        for readers, gradient in reader_gradients(taps, task.wires, len(points)):
            contract(scores, differences, readers, gradient, task.wires)
    return scores


def path(steps: int, rule: Rule) -> list[float]:
    """Where on the way from the base (0) to the clean run (1) gradients are taken.

    Example:
        >>> path(4, "midpoint"), path(2, "left"), path(2, "right")
        ([0.125, 0.375, 0.625, 0.875], [0.0, 0.5], [0.5, 1.0])
    """
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[rule]
    return [(step + shift) / steps for step in range(steps)]


def interpolated(clean: Tensor, base: Tensor, points: list[float]) -> Float[Tensor, "row ..."]:
    """Rows `(point image)` on the line between two activations."""
    return torch.cat([base + point * (clean - base) for point in points]) if points != [1.0] else clean


def _metric(task: Task, batch: Batch, repeats: int) -> Callable[[Tensor], Tensor]:
    """The task's metric on rows `(repeat image)`."""

    def metric(output: Tensor) -> Tensor:
        return task.score(output.unflatten(0, (repeats, -1)), batch).flatten()

    return metric


def _along_activations(task: Task, batch: Batch, scores: Tensor, points: list[float]) -> None:
    """EAP-IG over activations: one path per group of writers that write at one place (**C**)."""
    graph, clean, base = task.graph, batch.clean, batch.base
    metric, repeats = _metric(task, batch, len(points)), len(points)
    differences = Differences.of(clean, base)

    def score(stream: Tensor, start: int, writers: slice) -> Tensor:
        """Fill in the scores with all readers from a layer on; gradient at the stream before it."""
        taps = tap(task.model, stream, metric, clean.layout, start)
        with torch.no_grad():
            for readers, gradient in reader_gradients(taps, task.wires, repeats, start):
                contract(scores, differences, readers, gradient, task.wires, writers)
        return taps.stream

    score(interpolated(clean.embed, base.embed, points), 0, slice(0, 1))
    for layer, block in enumerate(task.model.parts.blocks):
        heads, pre = graph.writers_of(layer), clean.streams[layer]
        with torch.no_grad():
            mid = pre + plain.scaled(block.scale1, block.attn.out(plain.merge(clean.z[layer])))
            z = interpolated(clean.z[layer], base.z[layer], points)
            mixed = pre.repeat(repeats, 1, 1) + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
        # Heads write to the MLP of their own layer too: what it reads is a leaf apart from the stream itself.
        with torch.enable_grad():
            read = mixed.detach().requires_grad_(True)
            write = plain.mlp(block, read)
        later = score(mixed + write.detach(), layer + 1, heads)
        (gradient,) = torch.autograd.grad(write, read, later)
        with torch.no_grad():
            gradient = gradient.unflatten(0, (repeats, -1)).mean(0)[None]
            place = graph.readers_of(layer).stop
            contract(scores, differences, slice(place, place + 1), gradient, task.wires, heads)
            stream = mid.repeat(repeats, 1, 1) + interpolated(clean.mlp[layer], base.mlp[layer], points)
        score(stream, layer + 1, slice(heads.stop, heads.stop + 1))


def _check(task: Task, method: str, steps: int, rule: str | None) -> Rule:
    if method not in METHODS:
        raise unknown("edge attribution", method, METHODS)
    if rule is not None and rule not in RULES:
        raise unknown("rule", rule, RULES)
    if not isinstance(steps, int) or steps < 1:
        raise OutOfRange(f"steps={steps!r}: a path needs at least one step.")
    if method == "eap" and task.metric_name in WITHOUT_TARGET:
        raise RefusedMethod(
            f"method='eap' with {task.metric_name!r}: the metric compares with the clean run, and on the clean run its "
            "gradient is exactly zero, so every score would be 0. Use method='ig', or a metric such as 'logit_diff'."
        )
    return rule or ("right" if method == "ig_activations" else "midpoint")


def edge_result(
    task: Task,
    scores: Float[np.ndarray, "edge image"],
    *,
    kind: str,
    title: str,
    seed: int,
    **facts: Any,
) -> Result:
    """Scores of all edges as a result: columns `unit` (the edge), `writer`, `reader`.

    Raises:
        BadData: every score is zero.
    """
    if not scores.any():
        raise BadData(
            f"every edge scores exactly 0 ({title}, {task.metric_name}): the gradient of the metric is zero where it "
            "was taken. Choose another metric or method."
        )
    graph: EdgeGraph = task.graph
    units = [
        {"unit": name, "writer": graph.writers[writer], "reader": graph.readers[reader]}
        for name, (writer, reader) in zip(graph.edges, graph.places, strict=True)
    ]
    return Result.from_values(
        kind,
        title,
        units,
        {task.metric_name: scores},
        images=task.image_table(),
        provenance=task.provenance(attribution=facts),
        baseline={task.metric_name: float(task.full.mean())},
        seed=seed,
    )
