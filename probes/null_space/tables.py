"""Tables of a null-space reading: per text, class, control and model, with intervals, and how far to believe them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from mechvis.stats import benjamini_hochberg, bootstrap
from probes.null_space.head import LinearHead
from probes.null_space.scores import Shift
from probes.null_space.space import NullSpace

_POOR = 0.5
"""R^2 of a translator below which a reading is not to be trusted; a judgement."""


def _mean(values: np.ndarray, seed: int) -> dict[str, Any]:
    one = bootstrap(values, seed=seed)
    return {"value": float(one.effect[0]), "low": float(one.low[0]), "high": float(one.high[0]), "n": int(one.n[0])}


def _named(prefix: str, values: np.ndarray, seed: int) -> dict[str, float]:
    one = _mean(values, seed)
    return {prefix: one["value"], f"{prefix}_low": one["low"], f"{prefix}_high": one["high"]}


def text_table(
    names: Sequence[str], cosines: np.ndarray, found: Shift, control: Shift | None, seed: int
) -> pl.DataFrame:
    """The dictionary, largest change first."""
    delta, turned = bootstrap(cosines.T, seed=seed), bootstrap(found.AS.T, seed=seed)
    adjusted = benjamini_hochberg(turned.p)
    table = pl.DataFrame(
        {
            "text": list(names),
            "delta": delta.effect,
            "low": delta.low,
            "high": delta.high,
            "AS": turned.effect,
            "AS_low": turned.low,
            "AS_high": turned.high,
            "AS_control": np.full(len(names), np.nan) if control is None else control.AS.mean(0),
            "p_adjusted": adjusted,
            "n": turned.n,
        }
    )
    return table.sort(pl.col("delta").abs(), descending=True).with_columns(pl.col(pl.Float64).fill_nan(None))


def class_table(head: LinearHead, classes: np.ndarray, found: Shift, seed: int) -> pl.DataFrame:
    """IS, |AS| and the share of the null part per class that has images."""
    rows = []
    for index, name in enumerate(head.class_names):
        of = classes == index
        if of.any():
            rows.append(
                {"class": name, "n": int(of.sum())}
                | _named("IS", found.IS[of], seed)
                | _named("AS_size", np.abs(found.AS[of]).mean(1), seed)
                | _named("share", found.share[of], seed)
            )
    return pl.DataFrame(rows).with_columns(pl.col(pl.Float64).fill_nan(None))


def control_table(found: Shift, others: dict[str, Shift], seed: int) -> pl.DataFrame:
    """The null part beside parts of the same length."""
    rows = [
        {"removed": name}
        | _named("IS", one.IS, seed)
        | _named("AS_size", np.abs(one.AS).mean(1), seed)
        | _named("logits", one.logits, seed)
        | {"n": len(one.IS)}
        for name, one in {"the null part": found, **others}.items()
    ]
    return pl.DataFrame(rows)


def model_row(
    name: str, head: LinearHead, space: NullSpace, found: Shift, n: int, good: dict[str, Any], seed: int
) -> dict[str, Any]:
    """The whole model in one row: IS, |AS|, their normalised forms, and the translator's quality."""
    has = found.share > 0
    row = {"model": name, "classes": len(head.weight), "d": head.weight.shape[1], "null_dim": space.null_dim}
    row |= {"null": space.kind, "centered": space.centered, "n": n}
    row |= _named("share", found.share, seed) | _named("IS", found.IS, seed)
    row |= _named("AS_size", np.abs(found.AS).mean(1), seed)
    per_dim = found.IS / max(space.null_dim, 1)
    row |= _named("IS_per_dim", per_dim, seed)
    row |= _named("IS_per_share", np.where(has, found.IS / np.where(has, found.share, 1.0), np.nan), seed)
    for measure in ("r2", "score_correlation"):
        value, low, high = good.get(measure, (None, None, None))
        row |= {f"translator_{measure}": value, f"translator_{measure}_low": low, f"translator_{measure}_high": high}
    return row


def caveats_of(
    space: NullSpace, good: dict[str, Any], mean: np.ndarray | None, others: dict[str, Shift]
) -> tuple[str, ...]:
    """How far to believe a reading, one sentence each."""
    said = []
    if not good:
        said.append("The translator was not judged: without the images' true embeddings its quality is unknown.")
    else:
        r2, low, high = good["r2"]
        text = (
            f"The translator explains {r2:.1%} [{low:.1%}, {high:.1%}] of the embeddings' variance on images that it "
        )
        said.append(text + "has not seen; what it does not read of the null space stays unseen here.")
        if low < _POOR:
            said.insert(0, "The translator is poor: angles are as much its own as the null space's. Fit more images.")
    if space.kind == "soft":
        said.append(f"The head has no exact null space; this one moves logits by up to {space.logit_change:.3g}.")
    if mean is None:
        said.append(
            "The whole null part was taken away, its mean over images included, which no image lacks: equivalent "
            "features lie outside the data. fill='mean' takes away only what differs between images."
        )
    if "principal" in others:
        moved = float(others["principal"].logits.mean())
        said.append(f"Parts of the same length in the principal space move a logit by {moved:.3g} on average.")
    said.append(
        "Taking a feature's own part away also shortens it, so it turns further than a random vector of that length "
        "turns it (arcsin against arctan of the share, if the translator keeps lengths): IS above the control `null` "
        "is not yet meaning."
    )
    said.append("Models differ in the size of their null space: compare IS_per_dim or IS_per_share, not IS.")
    return tuple(said)
