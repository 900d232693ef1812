"""Causal structure: which parts of a model cause a behaviour, tested by intervening.

From pairs of images to a tested circuit, each step one function:

    pairs = circuits.pairs.scene_swap(model, n=128, change="background", seed=3)
    task = circuits.task(model, pairs)                   # what is to be explained: images, ablation, metric
    circuits.patch(model, pairs, units="heads")          # which components, exactly
    scores = circuits.eap(task)                          # which edges, estimated; how far that is off is measured
    circuit = circuits.select(scores, 50)                # a circuit; or circuits.acdc(task, 0.01)
    circuits.evaluate(circuit, other_task)               # enough? needed? better than chance?
    circuits.draw(circuit, path="circuit.svg")

Sub-packages: `pairs` (clean and corrupt images), `patching`, `edges` (runs with cut edges), `attribution`, `search`,
`evaluation`, `comparison` (between models and data sets), `weights` (what weights alone say), `contextual`
(decomposition), `subspace` (interchange of directions), `causal_paths` (through neurons), `editing` (for good, with
undo), `drawing`. Head-ablation studies: `cigma`.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "cigma": "circuits.cigma",
        "Study": "circuits.study",
        "load_study": "circuits.study",
        "prune": "circuits.prune",
        "save_pruned": "circuits.prune",
        "Pairs": "circuits.pairs.pairs",
        "Task": "circuits.task",
        "task": "circuits.task",
        "patch": "circuits.patching.patch",
        "patch_edges": "circuits.edge_patching",
        "path_patch": "circuits.path_patching",
        "atp": "circuits.attribution.atp",
        "eap": "circuits.attribution.eap",
        "EdgeGraph": "circuits.edges.graph",
        "Circuit": "circuits.circuit",
        "select": "circuits.search.select",
        "acdc": "circuits.search.acdc",
        "acdc_circuits": "circuits.search.acdc",
        "acdc_sweep": "circuits.search.acdc",
        "edge_pruning": "circuits.search.edge_pruning",
        "evaluate": "circuits.evaluation.evaluate",
        "CircuitEvaluation": "circuits.evaluation.evaluation",
        "stability": "circuits.evaluation.stability",
        "recovery": "circuits.evaluation.recovery",
        "compare_models": "circuits.comparison.models",
        "compare_data": "circuits.comparison.data",
        "draw": "circuits.drawing.figure",
    },
    modules=(
        "causal_paths",
        "comparison",
        "contextual",
        "drawing",
        "editing",
        "evaluation",
        "pairs",
        "patching",
        "subspace",
        "weights",
    ),
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.attribution.atp import atp
    from circuits.attribution.eap import eap
    from circuits.cigma import cigma
    from circuits.circuit import Circuit
    from circuits.comparison.data import compare_data
    from circuits.comparison.models import compare_models
    from circuits.drawing.figure import draw
    from circuits.edge_patching import patch_edges
    from circuits.edges.graph import EdgeGraph
    from circuits.evaluation.evaluate import evaluate
    from circuits.evaluation.evaluation import CircuitEvaluation
    from circuits.evaluation.recovery import recovery
    from circuits.evaluation.stability import stability
    from circuits.pairs.pairs import Pairs
    from circuits.patching.patch import patch
    from circuits.path_patching import path_patch
    from circuits.prune import prune, save_pruned
    from circuits.search.acdc import acdc, acdc_circuits, acdc_sweep
    from circuits.search.edge_pruning import edge_pruning
    from circuits.search.select import select
    from circuits.study import Study, load_study
    from circuits.task import Task, task
