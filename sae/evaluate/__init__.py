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
        "evaluate": "sae.evaluate.table",
        "DictionaryEvaluation": "sae.evaluate.evaluation",
        "fvu": "sae.evaluate.reconstruction",
        "Reconstruction": "sae.evaluate.reconstruction",
        "density": "sae.evaluate.reconstruction",
        "monosemanticity": "sae.evaluate.monosemanticity",
        "moran": "sae.evaluate.spatial",
        "coherence": "sae.evaluate.coherence",
        "hoyer": "sae.evaluate.coherence",
        "kappa_4": "sae.evaluate.coherence",
        "energy": "sae.evaluate.coherence",
        "stability": "sae.evaluate.stability",
        "Stability": "sae.evaluate.stability",
        "sparse_probing": "sae.evaluate.probing",
        "SparseProbing": "sae.evaluate.probing",
        "concepts_of": "sae.evaluate.probing",
        "absorption": "sae.evaluate.absorption",
        "Absorption": "sae.evaluate.absorption",
        "Parent": "sae.evaluate.absorption",
        "scene_hierarchy": "sae.evaluate.absorption",
        "attribute_latents": "sae.evaluate.attributes",
        "AttributeLatents": "sae.evaluate.attributes",
        "supervised": "sae.evaluate.supervised",
        "control": "sae.evaluate.control",
        "control_in_model": "sae.evaluate.control_in_model",
        "Control": "sae.evaluate.control",
        "strengths": "sae.evaluate.written",
        "load_dictionaries": "sae.evaluate.folders",
    },
    modules=("recovery",),
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.evaluate.absorption import Absorption, Parent, absorption, scene_hierarchy
    from sae.evaluate.attributes import AttributeLatents, attribute_latents
    from sae.evaluate.coherence import coherence, energy, hoyer, kappa_4
    from sae.evaluate.control import Control, control
    from sae.evaluate.control_in_model import control_in_model
    from sae.evaluate.evaluation import DictionaryEvaluation
    from sae.evaluate.folders import load_dictionaries
    from sae.evaluate.monosemanticity import monosemanticity
    from sae.evaluate.probing import SparseProbing, concepts_of, sparse_probing
    from sae.evaluate.reconstruction import Reconstruction, density, fvu
    from sae.evaluate.spatial import moran
    from sae.evaluate.stability import Stability, stability
    from sae.evaluate.supervised import supervised
    from sae.evaluate.table import evaluate
    from sae.evaluate.written import strengths
