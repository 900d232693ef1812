"""Models compared through a crosscoder: which latents both have, which only one has, and whether that is so.

* `model_diff`: decoder norms, latent scaling, classes, FVU of each model; a :class:`ModelDiff`.
* `relative_norms`, `latent_scaling`: its two measures alone. `shuffled_pairs`: rows for the control.
* `causal_swap`: latents exchanged between images inside the models, against random latents of similar activity.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "model_diff": "sae.diffing.compare",
        "ModelDiff": "sae.diffing.record",
        "relative_norms": "sae.diffing.norms",
        "latent_scaling": "sae.diffing.scaling",
        "shuffled_pairs": "sae.diffing.norms",
        "causal_swap": "sae.diffing.swap",
        "SwapSite": "sae.diffing.swap",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.diffing.compare import model_diff
    from sae.diffing.norms import relative_norms, shuffled_pairs
    from sae.diffing.record import ModelDiff
    from sae.diffing.scaling import latent_scaling
    from sae.diffing.swap import SwapSite, causal_swap
