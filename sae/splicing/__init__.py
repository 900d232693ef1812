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
        "splice": "sae.splicing.splice",
        "splice_parts": "sae.splicing.splice",
        "LatentChange": "sae.splicing.change",
        "ablate": "sae.splicing.latent_edits",
        "ablate_to_mean": "sae.splicing.latent_edits",
        "clamp": "sae.splicing.latent_edits",
        "scale": "sae.splicing.latent_edits",
        "steer": "sae.splicing.latent_edits",
        "replace": "sae.splicing.latent_edits",
        "load_edits": "sae.splicing.latent_edits",
        "clamp_latents": "sae.splicing.values",
        "latent_means": "sae.splicing.values",
        "written_changes": "sae.splicing.written",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.splicing.change import LatentChange
    from sae.splicing.latent_edits import ablate, ablate_to_mean, clamp, load_edits, replace, scale, steer
    from sae.splicing.splice import splice, splice_parts
    from sae.splicing.values import clamp_latents, latent_means
    from sae.splicing.written import written_changes
