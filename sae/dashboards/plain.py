"""The same examples with all codes in memory and full sorts: what the streaming way has to agree with.

For small data and for tests. Written from the definitions, in the order of the words of `collect.py`.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.dashboards.best import drawn
from sae.dashboards.codes import Reading


def plain_codes(
    reading: Reading, pixels: Float[Tensor, "image channel height width"]
) -> Float[np.ndarray, "image row latent"]:
    """Codes of all rows of all images."""
    run = reading.model.run(pixels, capture=reading.sites)
    rows = {name: place.take(run.cache[place.site]) for name, place in reading.places.items()}
    with torch.no_grad():
        return reading.dictionary.encode(rows).double().cpu().numpy()


def plain_examples(
    codes: Float[np.ndarray, "image row latent"], latent: int, *, n_top: int, n_quantile: int, sample: int, seed: int
) -> list[tuple[str, int, float, int, float | None]]:
    """Examples of one latent: kind, image, value, row of the value, quantile.

    Args:
        codes: of everything.
        latent: which.
        n_top: strongest images.
        n_quantile: images from the whole range.
        sample: images that quantiles are told from.
        seed: of the sample.
    """
    value, row = codes[:, :, latent].max(1), codes[:, :, latent].argmax(1)
    fires = [i for i in range(len(codes)) if value[i] > 0]
    top = sorted(fires, key=lambda i: (-value[i], i))[:n_top]
    keys = drawn(np.arange(len(codes)), latent, seed)
    held = sorted(fires, key=lambda i: -keys[i])[:sample]
    pool = sorted((i for i in held if i not in top), key=lambda i: (-value[i], i))
    if len(pool) > n_quantile:
        pool = [pool[int((j + 0.5) * len(pool) / n_quantile)] for j in range(n_quantile)]
    found = [("top", i, float(value[i]), int(row[i]), None) for i in top]
    return found + [
        ("quantile", i, float(value[i]), int(row[i]), sum(value[j] <= value[i] for j in held) / len(held)) for i in pool
    ]
