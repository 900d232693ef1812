"""Pictures that a unit, a direction, a head, a latent or a class answers to: feature visualisation, and how far to
believe it.

* `maco(model, objective, natural=...)`: pictures with the spectrum of natural images and a phase that is optimised.
* objectives: `direction`, `unit`, `head`, `latent`, `logit`.
* the result (`Visualisation`) compares each picture with natural images and with random directions: a picture that
  activates a unit is easy to find for any direction, so it is no evidence by itself.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "maco": "mechvis.visualise.maco",
        "Visualisation": "mechvis.visualise.visualisation",
        "Objective": "mechvis.visualise.objectives",
        "direction": "mechvis.visualise.objectives",
        "unit": "mechvis.visualise.objectives",
        "head": "mechvis.visualise.objectives",
        "latent": "mechvis.visualise.objectives",
        "logit": "mechvis.visualise.objectives",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.visualise.maco import maco
    from mechvis.visualise.objectives import Objective, direction, head, latent, logit, unit
    from mechvis.visualise.visualisation import Visualisation
