"""Does a concept explanation say what the classifier computes? (SURF; methods.md 7)

* `surf`: given explanations on given embeddings. `surf_of_model`: concept methods on a wrapped classifier.
* `Explanation`, `shared`, `Evaluation`, `surrogate`, `errors`: the pieces.
* `sanity_suite`: is any faithfulness metric able to tell random explanations from perfect ones? Run it on every new
  metric. `surf_mae`, `surf_emd` pass; `trained_surrogate`, `reconstruct_and_run` are older designs that fail.
* `explain`, `cav`: concepts by scikit-learn. `frozen_gradient_surf`: inner layers, experimental.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Explanation": "probes.surf.explanation",
        "shared": "probes.surf.explanation",
        "Evaluation": "probes.surf.surrogate",
        "surrogate": "probes.surf.surrogate",
        "errors": "probes.surf.surrogate",
        "surf_mae": "probes.surf.metrics",
        "surf_emd": "probes.surf.metrics",
        "trained_surrogate": "probes.surf.metrics",
        "reconstruct_and_run": "probes.surf.metrics",
        "sanity_suite": "probes.surf.sanity",
        "SanitySuite": "probes.surf.sanity",
        "random_head": "probes.surf.sanity",
        "explain": "probes.surf.methods",
        "cav": "probes.surf.methods",
        "surf": "probes.surf.study",
        "surf_of_model": "probes.surf.study",
        "Surf": "probes.surf.study",
        "frozen_gradient_surf": "probes.surf.frozen_gradient",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.surf.explanation import Explanation, shared
    from probes.surf.frozen_gradient import frozen_gradient_surf
    from probes.surf.methods import cav, explain
    from probes.surf.metrics import reconstruct_and_run, surf_emd, surf_mae, trained_surrogate
    from probes.surf.sanity import SanitySuite, random_head, sanity_suite
    from probes.surf.study import Surf, surf, surf_of_model
    from probes.surf.surrogate import Evaluation, errors, surrogate
