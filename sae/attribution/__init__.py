"""What latents do to what comes out, and what they are about.

* `latent_attribution`: effect of every latent on a metric, by the direct path, by gradient x activation (or activation
  difference: attribution patching, with the error term as a node) and, as the truth, by ablation; how well they agree.
* `read_out_projection`: what the direction of every latent says to the head or to texts, the last norm frozen.
* `describe_latents`: labels of when a latent fires and of what it does, and whether they are the same.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "latent_attribution": "sae.attribution.latent_effects",
        "LatentAttribution": "sae.attribution.latent_effects",
        "read_out_projection": "sae.attribution.projection",
        "projected_directions": "sae.attribution.projection",
        "ReadOutProjection": "sae.attribution.projection",
        "describe_latents": "sae.attribution.descriptions",
        "LatentDescriptions": "sae.attribution.descriptions",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.attribution.descriptions import LatentDescriptions, describe_latents
    from sae.attribution.latent_effects import LatentAttribution, latent_attribution
    from sae.attribution.projection import ReadOutProjection, projected_directions, read_out_projection
