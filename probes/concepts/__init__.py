"""Concepts: found in activations, measured by what the model does with them, tested against random ones.

| question | where to look |
| --- | --- |
| which directions are in the activations of a site? | `factorise`, `extraction` (how good is a factorisation) |
| which of them matter for a class, and where in the images are they? | `craft`; `refine_at` takes one apart |
| how much does each concept matter, and which method says so best? | `importance`, `compare_importance` |
| which images are decided alike, and by which unreliable concept? | `strategies` |
| does a class depend on a concept that I can show in pictures? | `tcav` |
| which segments of images are concepts of a class? | `ace` |
| which neurons of an MLP fire together, and what do they write? | `mlp_concepts`, `groups` |

Known answers to test all this on: `planted_parts` (F6).
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "factorise": "probes.concepts.factors",
        "Factorisation": "probes.concepts.factors",
        "semi_nmf": "probes.concepts.semi_nmf",
        "nonnegative_code": "probes.concepts.coding",
        "extraction": "probes.concepts.quality",
        "Extraction": "probes.concepts.quality",
        "importance": "probes.concepts.importance",
        "concept_curves": "probes.concepts.curves",
        "compare_importance": "probes.concepts.curves",
        "game_of": "probes.concepts.game",
        "craft": "probes.concepts.craft",
        "Concepts": "probes.concepts.record",
        "tail_of": "probes.concepts.tail",
        "activations": "probes.concepts.tail",
        "refine": "probes.concepts.refine",
        "refine_at": "probes.concepts.refine",
        "against_masks": "probes.concepts.maps",
        "strategies": "probes.concepts.strategies",
        "Strategies": "probes.concepts.strategies",
        "cav": "probes.concepts.cav",
        "tcav": "probes.concepts.tcav",
        "score_concepts": "probes.concepts.scores",
        "TCAV": "probes.concepts.scores",
        "ace": "probes.concepts.ace",
        "ACE": "probes.concepts.ace",
        "mlp_concepts": "probes.concepts.mlp",
        "MLPConcepts": "probes.concepts.mlp",
        "groups": "probes.concepts.mlp",
        "writes": "probes.concepts.mlp",
        "planted_parts": "probes.concepts.planted",
        "matched": "probes.concepts.planted",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.concepts.ace import ACE, ace
    from probes.concepts.cav import cav
    from probes.concepts.coding import nonnegative_code
    from probes.concepts.craft import craft
    from probes.concepts.curves import compare_importance, concept_curves
    from probes.concepts.factors import Factorisation, factorise
    from probes.concepts.game import game_of
    from probes.concepts.importance import importance
    from probes.concepts.maps import against_masks
    from probes.concepts.mlp import MLPConcepts, groups, mlp_concepts, writes
    from probes.concepts.planted import matched, planted_parts
    from probes.concepts.quality import Extraction, extraction
    from probes.concepts.record import Concepts
    from probes.concepts.refine import refine, refine_at
    from probes.concepts.scores import TCAV, score_concepts
    from probes.concepts.semi_nmf import semi_nmf
    from probes.concepts.strategies import Strategies, strategies
    from probes.concepts.tail import activations, tail_of
    from probes.concepts.tcav import tcav
