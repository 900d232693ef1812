"""Dictionaries inside a running model.

* `splice`: a model with a dictionary in the way of an activation, with or without its error term. Latents are then
  sites like any other: captured, edited with `mechvis.edits`, swept with `mechvis.sweep(units="latents")`,
  differentiated.
* `ablate`, `ablate_to_mean`, `clamp`, `scale`, `steer`, `replace`: latents of a dictionary changed by ordinary edits of
  the plain model, per token or region; `load_edits` opens saved ones.
* `written_changes`: edits that put in what changed codes write, for dictionaries that read more than one run can offer
  (crosscoders over layers or models).
* `clamp_latents`, `latent_means`: values for edits at the sites of latents.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "splice": "sae.splice.splice",
        "splice_parts": "sae.splice.splice",
        "LatentChange": "sae.splice.change",
        "ablate": "sae.splice.latent_edits",
        "ablate_to_mean": "sae.splice.latent_edits",
        "clamp": "sae.splice.latent_edits",
        "scale": "sae.splice.latent_edits",
        "steer": "sae.splice.latent_edits",
        "replace": "sae.splice.latent_edits",
        "load_edits": "sae.splice.latent_edits",
        "clamp_latents": "sae.splice.values",
        "latent_means": "sae.splice.values",
        "written_changes": "sae.splice.written",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.splice.change import LatentChange
    from sae.splice.latent_edits import ablate, ablate_to_mean, clamp, load_edits, replace, scale, steer
    from sae.splice.splice import splice, splice_parts
    from sae.splice.values import clamp_latents, latent_means
    from sae.splice.written import written_changes
