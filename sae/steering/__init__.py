"""Latents explained by what they do: directions added where there is nothing to see, or where latents are active.

* `explain_by_steering`: pure steering on a blank image, read by texts (CLIP), classes and retrieval, against random and
  permuted directions (methods.md 8).
* `informed_top_k`: the same on the masked top images of a latent.
* `quality`: what makes an explanation good: AUROC, IoU, similarity, monosemanticity.
* `text_reader`, `class_reader`: model outputs as scores of labels. `blank_pixels`: what a blank image is.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "explain_by_steering": "sae.steering.pure",
        "SteeringExplanations": "sae.steering.pure",
        "steered_outputs": "sae.steering.outputs",
        "blank_pixels": "sae.steering.outputs",
        "informed_top_k": "sae.steering.informed",
        "InformedExplanations": "sae.steering.informed",
        "Reader": "sae.steering.readers",
        "text_reader": "sae.steering.readers",
        "class_reader": "sae.steering.readers",
    },
    modules=("quality",),
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.steering import quality
    from sae.steering.informed import InformedExplanations, informed_top_k
    from sae.steering.outputs import blank_pixels, steered_outputs
    from sae.steering.pure import SteeringExplanations, explain_by_steering
    from sae.steering.readers import Reader, class_reader, text_reader
