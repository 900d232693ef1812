"""Causal structure: which parts of a model cause a behaviour, tested by intervening.

Here now: head-ablation studies (CIGMA with guards, controls and comparators) and pruning.
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
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.cigma import cigma
    from circuits.prune import prune, save_pruned
    from circuits.study import Study, load_study
