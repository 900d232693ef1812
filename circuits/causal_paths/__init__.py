"""Causal paths: the hidden units that a class's answers run through, and what they say to each other (methods2.md 22).

    graph = causal_paths(model, images, reference=others, target="circle")
    graph                                        # edges between heads and neurons, with effects and flags
    graph.to_json(); graph.save("runs/paths")

* `causal_paths` searches from the last hidden layer down, prunes, and runs the controls; `PathSettings` says how.
* `Effects` measures units and edges exactly; `PathCut` is the model with some edges at their mean.
* `repairs` tries edges as repairs of wrong answers.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "causal_paths": "circuits.causal_paths.find",
        "PathSettings": "circuits.causal_paths.search",
        "PathGraph": "circuits.causal_paths.graph",
        "Effects": "circuits.causal_paths.effects",
        "PathCut": "circuits.causal_paths.cut",
        "path_cut": "circuits.causal_paths.cut",
        "Runs": "circuits.causal_paths.runs",
        "mean_run": "circuits.causal_paths.runs",
        "repairs": "circuits.causal_paths.repair",
        "Repairs": "circuits.causal_paths.repair",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.causal_paths.cut import PathCut, path_cut
    from circuits.causal_paths.effects import Effects
    from circuits.causal_paths.find import causal_paths
    from circuits.causal_paths.graph import PathGraph
    from circuits.causal_paths.repair import Repairs, repairs
    from circuits.causal_paths.runs import Runs, mean_run
    from circuits.causal_paths.search import PathSettings
