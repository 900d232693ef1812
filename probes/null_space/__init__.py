"""What a classifier's last layer cannot see, and what that part of the features means (SING; methods.md 6).

* `sing`: a wrapped classifier and a CLIP: IS and AS, controls, dictionary read-out, directed edits. `read_null_space`
  from matrices. `compare_null_spaces` puts several models side by side.
* `linear_head`, `LinearHead`: the head as a matrix. `null_space`, `soft_null_space`: its null space.
* `fit_translator`, `Translator`, `quality`: from features to CLIP's space.
* `shift`: IS and AS of any change of features. `directed_edit`: towards a text, unseen by the head.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "sing": "probes.null_space.reading",
        "read_null_space": "probes.null_space.reading",
        "compare_null_spaces": "probes.null_space.compare",
        "NullComparison": "probes.null_space.compare",
        "NullReading": "probes.null_space.record",
        "LinearHead": "probes.null_space.head",
        "linear_head": "probes.null_space.head",
        "NullSpace": "probes.null_space.space",
        "null_space": "probes.null_space.space",
        "soft_null_space": "probes.null_space.space",
        "Translator": "probes.null_space.translator",
        "fit_translator": "probes.null_space.translator",
        "quality": "probes.null_space.translator",
        "Shift": "probes.null_space.scores",
        "shift": "probes.null_space.scores",
        "directed_edit": "probes.null_space.edit",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.null_space.compare import NullComparison, compare_null_spaces
    from probes.null_space.edit import directed_edit
    from probes.null_space.head import LinearHead, linear_head
    from probes.null_space.reading import read_null_space, sing
    from probes.null_space.record import NullReading
    from probes.null_space.scores import Shift, shift
    from probes.null_space.space import NullSpace, null_space, soft_null_space
    from probes.null_space.translator import Translator, fit_translator, quality
