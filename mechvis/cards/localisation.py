"""Where a map lies against object masks: beside the numbers of maps that know nothing, and apart from faithfulness.

A map that lies on the object is pleasing, and no evidence that the model used the object: a model with a background
shortcut has faithful maps that lie elsewhere.
"""

import numpy as np
import polars as pl
from torch import Tensor

from mechvis import stats
from mechvis.cards.data import CardData
from mechvis.faithfulness.localisation import Auroc, AveragePrecision, PointingGame, RelevanceMass

METRICS = (Auroc(), AveragePrecision(), PointingGame(), RelevanceMass())


def localisation_table(maps: Tensor, controls: dict[str, Tensor], data: CardData, seed: int) -> pl.DataFrame:
    """Measures of maps and controls against the masks of the images.

    Args:
        maps: `[image patch]`.
        controls: the same by name.
        data: images with masks.
        seed: of the bootstrap.

    Returns:
        A row per measure and map: mean, interval, images used, images left out (no mask on any patch).
    """
    masks = data.images.masks_for(data.model.preprocess)
    grid = data.model.parts.grid
    rows = []
    for metric in METRICS:
        for who, given in {"this explanation": maps, **controls}.items():
            values = np.asarray(metric.measure(given, masks, grid).values)
            found = stats.bootstrap(values, seed=seed)
            rows.append(
                {
                    "measure": metric.NAME,
                    "of": who,
                    "value": float(found.effect[0]),
                    "low": float(found.low[0]),
                    "high": float(found.high[0]),
                    "n": int(found.n[0]),
                    "left out": int(found.excluded[0]),
                }
            )
    return pl.DataFrame(rows)
