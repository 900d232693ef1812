"""B-cos students: a ViT converted so that its answer is, exactly, a sum of contributions of its input.

* `convert`: a wrapped ViT to a `BcosViT` of the same shape (B-cos units, no biases, norm without mean, six channels).
* `align`: train the student on the teacher's features (ALOE), no labels needed.
* `contributions`: W(x) x per pixel and per patch, with what the special tokens add; it sums to the logit.
* `explaining`: the mode in which all factors are constants, so that gradient times input is exact.
* `bcos_parts`, `wrap_student`: the student as a `HookedViT`, for runs, edits and sweeps.
* `measure_student`: agreement with the teacher, accuracy, and where the map points, beside gradient times input.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "BcosLinear": "probes.bcos.units",
        "RMSNorm": "probes.bcos.units",
        "explaining": "probes.bcos.units",
        "BcosViT": "probes.bcos.student",
        "convert": "probes.bcos.convert",
        "bcos_parts": "probes.bcos.family",
        "wrap_student": "probes.bcos.family",
        "align": "probes.bcos.align",
        "Aligned": "probes.bcos.align",
        "contributions": "probes.bcos.explain",
        "Contributions": "probes.bcos.explain",
        "measure_student": "probes.bcos.measure",
        "pointing": "probes.bcos.measure",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.bcos.align import Aligned, align
    from probes.bcos.convert import convert
    from probes.bcos.explain import Contributions, contributions
    from probes.bcos.family import bcos_parts, wrap_student
    from probes.bcos.measure import measure_student, pointing
    from probes.bcos.student import BcosViT
    from probes.bcos.units import BcosLinear, RMSNorm, explaining
