"""Written directions read as classes or texts: which of them lies nearest, and is that nearer than by chance?

For every direction and both of its signs, the names of the largest cosines with where the direction leads (through the
last norm's centring and gain and the projection; :mod:`circuits.weights.read_out`). Among many texts one is always
near, so beside each cosine stands the 95 % point of the *best* cosine that a random direction of the stream reaches in
the same list, and the share of random directions whose best is at least as good.

SITH (methods.md 2.7 **N**) explains a direction by several texts at once, with a sparse coherent pursuit; here each
text stands alone (**X**).
"""

from typing import Any

import numpy as np
import polars as pl
import torch

from circuits.weights.directions import Directions
from circuits.weights.read_out import ReadOut
from circuits.weights.table import WeightTable
from mechvis.errors import OutOfRange
from mechvis.provenance import provenance

WORDS = {
    "unit": "head or MLP, direction (strongest is 0), sign",
    "direction": "index of the direction",
    "sign": "+ or -: the direction or its opposite; which is which is arbitrary",
    "gain": "singular value",
    "share": "squared singular value as a share of all",
    "rank": "1 for the nearest name",
    "name": "the class or text",
    "cosine": "between the written direction and the name, where the names live",
    "logit": "what one unit of the direction writes to it, times the last norm's scale",
    "chance": "95 % point of the best cosine of random directions in the same list",
    "p": "share of random directions whose best cosine is at least this one (smallest 1 / (draws + 1))",
}


def read_as_words(
    found: Directions, out: ReadOut, *, k: int = 3, draws: int = 1000, seed: int = 0, model: Any = None
) -> WeightTable:
    """The nearest classes or texts of every written direction, both signs, beside chance.

    Args:
        found: from :func:`circuits.weights.directions`.
        out: from :func:`circuits.weights.read_out` of the same model.
        k: names per direction and sign; all if there are fewer.
        draws: random directions for the chance level.
        seed: of these.
        model: named in the provenance, if given.

    Raises:
        OutOfRange: k or draws below 1.
        ShapeMismatch: directions of another model.

    Example:
        >>> clip = mechvis.load("scenes-clip")                                                     # doctest: +SKIP
        >>> found = directions(clip.vision, 3, 1, top=4)                                           # doctest: +SKIP
        >>> read_as_words(found, read_out(clip, texts, centred=True)).table                        # doctest: +SKIP
    """
    if k < 1 or draws < 1:
        raise OutOfRange(f"k and draws are at least 1, got {k} and {draws}.")
    cosines = out.cosines(found.writes, behind_norm=found.final)
    logits = out.logits(found.writes, behind_norm=found.final)
    best = _best_by_chance(out, found.final, draws, seed)
    k = min(k, len(out.names))
    rows = []
    for direction in range(len(found)):
        for sign, word in ((1, "+"), (-1, "-")):
            order = (sign * cosines[direction]).topk(k).indices.tolist()
            for rank, name in enumerate(order, 1):
                cosine = float(sign * cosines[direction, name])
                rows.append(
                    {
                        "unit": f"{found.name} {direction}{word}",
                        "direction": direction,
                        "sign": word,
                        "gain": float(found.gains[direction]),
                        "share": float(found.shares[direction]),
                        "rank": rank,
                        "name": out.names[name],
                        "cosine": cosine,
                        "logit": float(sign * logits[direction, name]),
                        "chance": float(np.quantile(best, 0.95)),
                        "p": float((1 + (best >= cosine).sum()) / (1 + draws)),
                    }
                )
    what = "classes" if out.kind == "class" else "texts"
    facts = {"of": found.of, "layer": found.layer, "head": found.head, "folded": found.folded, "final": found.final}
    return WeightTable(
        kind="words",
        title=f"What {found.name} writes, read as {what}",
        table=pl.DataFrame(rows),
        words=WORDS,
        provenance=provenance(model, seed=seed, directions=facts, words={"names": list(out.names), "draws": draws}),
    )


def _best_by_chance(out: ReadOut, behind_norm: bool, draws: int, seed: int) -> np.ndarray:
    """The largest cosine of random directions, `[draw]`."""
    noise = torch.randn(draws, len(out.into), generator=torch.Generator().manual_seed(seed))
    return out.cosines(noise.to(out.into), behind_norm=behind_norm).max(-1).values.double().cpu().numpy()
