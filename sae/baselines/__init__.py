"""Dictionaries that nobody trained by gradients: what a learned one has to be compared with.

=====================  =============================================================================================
`pca`                  orthogonal directions of most variance, all of them or the k largest coefficients of each row
`ica`                  independent directions (FastICA)
`kmeans`               one centroid per row
`nmf`, `semi_nmf`      non-negative codes; directions that are non-negative, or free (Ding, Li and Jordan 2010)
`random_dictionary`    random directions, as many active as you ask, with the best codes there are for them
`identity`             writes what it reads: the upper end of every scale
`zero`, `mean`         write nothing, and the mean: the lower ends
=====================  =============================================================================================

Each is an ordinary `sae.Dictionary`: it encodes, decodes, saves, loads, and goes wherever a trained one does. All have
decoder rows of norm one, so that codes can be compared. Codes of `pca` and `ica` have signs; `signed=False` makes two
latents of each direction.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "pca": "sae.baselines.pca",
        "ica": "sae.baselines.ica",
        "kmeans": "sae.baselines.kmeans",
        "nmf": "sae.baselines.nmf",
        "semi_nmf": "sae.baselines.semi_nmf",
        "random_dictionary": "sae.baselines.random_dictionary",
        "identity": "sae.baselines.identity",
        "zero": "sae.baselines.identity",
        "mean": "sae.baselines.identity",
        "Linear": "sae.baselines.linear",
        "NonNegative": "sae.baselines.non_negative",
        "NearestCentroid": "sae.baselines.kmeans",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.baselines.ica import ica
    from sae.baselines.identity import identity, mean, zero
    from sae.baselines.kmeans import NearestCentroid, kmeans
    from sae.baselines.linear import Linear
    from sae.baselines.nmf import nmf
    from sae.baselines.non_negative import NonNegative
    from sae.baselines.pca import pca
    from sae.baselines.random_dictionary import random_dictionary
    from sae.baselines.semi_nmf import semi_nmf
