"""How good a dictionary is: beside baselines, on images that did not train it, every number with its interval.

* `evaluate`: one table for one or many dictionaries, a `DictionaryEvaluation`.
* `fvu`, `Reconstruction`, `density`: how well rows are written, with how many latents.
* `monosemanticity`, `moran`, `coherence`, `stability`: latents, maps, directions, seeds.
* `sparse_probing`, `absorption`, `attribute_latents`: concepts in latents.
* `control`, `control_in_model`, `supervised`: latents exchanged, against the ceiling of known labels.
* `recovery`: planted directions found again.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "evaluate": "sae.evaluation.table",
        "DictionaryEvaluation": "sae.evaluation.evaluation",
        "fvu": "sae.evaluation.reconstruction",
        "Reconstruction": "sae.evaluation.reconstruction",
        "density": "sae.evaluation.reconstruction",
        "monosemanticity": "sae.evaluation.monosemanticity",
        "moran": "sae.evaluation.spatial",
        "coherence": "sae.evaluation.coherence",
        "hoyer": "sae.evaluation.coherence",
        "kappa_4": "sae.evaluation.coherence",
        "energy": "sae.evaluation.coherence",
        "stability": "sae.evaluation.stability",
        "Stability": "sae.evaluation.stability",
        "sparse_probing": "sae.evaluation.probing",
        "SparseProbing": "sae.evaluation.probing",
        "concepts_of": "sae.evaluation.probing",
        "absorption": "sae.evaluation.absorption",
        "Absorption": "sae.evaluation.absorption",
        "Parent": "sae.evaluation.absorption",
        "scene_hierarchy": "sae.evaluation.absorption",
        "attribute_latents": "sae.evaluation.attributes",
        "AttributeLatents": "sae.evaluation.attributes",
        "supervised": "sae.evaluation.supervised",
        "control": "sae.evaluation.control",
        "control_in_model": "sae.evaluation.control_in_model",
        "Control": "sae.evaluation.control",
        "strengths": "sae.evaluation.written",
        "load_dictionaries": "sae.evaluation.folders",
    },
    modules=("recovery",),
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.evaluation.absorption import Absorption, Parent, absorption, scene_hierarchy
    from sae.evaluation.attributes import AttributeLatents, attribute_latents
    from sae.evaluation.coherence import coherence, energy, hoyer, kappa_4
    from sae.evaluation.control import Control, control
    from sae.evaluation.control_in_model import control_in_model
    from sae.evaluation.evaluation import DictionaryEvaluation
    from sae.evaluation.folders import load_dictionaries
    from sae.evaluation.monosemanticity import monosemanticity
    from sae.evaluation.probing import SparseProbing, concepts_of, sparse_probing
    from sae.evaluation.reconstruction import Reconstruction, density, fvu
    from sae.evaluation.spatial import moran
    from sae.evaluation.stability import Stability, stability
    from sae.evaluation.supervised import supervised
    from sae.evaluation.table import evaluate
    from sae.evaluation.written import strengths
