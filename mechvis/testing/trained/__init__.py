"""Trained vision transformers with a planted circuit: the truth is known although nothing was wired by hand.

=====================  ================================================================================================
name                   what it is for
=====================  ================================================================================================
`load`                 a bundled planted model, or its behaviour-only twin, with images, truth and certificate
`planted_models`       names of the bundled models
`folder_of`            the Hugging Face folder of one
`PlantedModel`         what `load` gives: `.model`, `.family(name, n)`, `.placement`, `.certificate`, `.certify()`
`PairFamily`           aligned clean and corrupt images with labels, and the grade of every node, unit and edge
`Truth`                those grades: `active`, `structural`, `free`, `out`
`TASKS`, `task_of`     the tasks: generators, programs, placements
`certify`, `gates`     measure a certificate; compare it with its bounds
`area_under_curve`     AUROC of `active` against `out` for any scores by name
`promoted`             scores of q, k and v edges as scores of node pairs, at which the truth is known
=====================  ================================================================================================

`python -m mechvis.testing.trained.build colour_if_shape --seed 0 --out DIR` trains one again.
"""

from mechvis.testing.trained.certificate import Subject, certify
from mechvis.testing.trained.families import PairFamily, family, family_names
from mechvis.testing.trained.gates import Gate, gates
from mechvis.testing.trained.loading import PlantedModel, folder_of, load, planted_models
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.shallow import area_under_curve
from mechvis.testing.trained.task import PlantedTask
from mechvis.testing.trained.tasks import TASKS, task_of
from mechvis.testing.trained.truth import GRADES, Truth, promoted

__all__ = [
    "GRADES",
    "TASKS",
    "Gate",
    "PairFamily",
    "Placement",
    "PlantedModel",
    "PlantedTask",
    "Subject",
    "Truth",
    "area_under_curve",
    "certify",
    "family",
    "family_names",
    "folder_of",
    "gates",
    "load",
    "planted_models",
    "promoted",
    "task_of",
]
