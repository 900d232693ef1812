"""Lenses: what the model would answer if it stopped here, per layer and per patch.

* `logit_lens`: the model's own read-out at any layer, token, attention or MLP write; a table per layer with accuracy,
  KL, agreement with the final answer, and identifiability. For CLIP: the same against texts.
* `lens_maps`: the answer of every patch in every layer, as maps over the image.
* `tuned_lens`: a learned affine map per layer into the final basis, on unlabelled images; `TunedLens` keeps it.
* `read_tokens`, `read_whole`: the read-out itself, for one's own vectors.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "LensMaps": "probes.lenses.maps",
        "LensTable": "probes.lenses.table",
        "TunedLens": "probes.lenses.tuned",
        "lens_maps": "probes.lenses.maps",
        "logit_lens": "probes.lenses.logit_lens",
        "read_tokens": "probes.lenses.read_out",
        "read_whole": "probes.lenses.read_out",
        "tuned_lens": "probes.lenses.training",
        "what_is_read": "probes.lenses.read_out",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.lenses.logit_lens import logit_lens
    from probes.lenses.maps import LensMaps, lens_maps
    from probes.lenses.read_out import read_tokens, read_whole, what_is_read
    from probes.lenses.table import LensTable
    from probes.lenses.training import tuned_lens
    from probes.lenses.tuned import TunedLens
