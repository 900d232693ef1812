"""The card of a text span: do the texts say what heads write, on images that they were not picked on?

1. Exactness (G2): heads and everything else add up to the embedding. 2. Share of the heads' variance that lies along
the texts, as a ratio of sums over images; beside as many texts for random directions, the texts of other heads (both
must be beaten: G6), and principal components, which nothing can beat. 3. Does it hold up (G9)?
"""

from typing import Any

import numpy as np
import polars as pl

from mechvis import stats
from mechvis.cards import thresholds
from mechvis.cards.data import CardData
from mechvis.cards.faithfulness_card import FaithfulnessCard
from mechvis.cards.scope import scope_of
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, ResultMismatch, SplitOverlap
from probes.cards.drafts import draft_of, refuse_same, without
from probes.textspan.reading import read, tower_of
from probes.textspan.record import TextSpan, image_keys

KEPT = 0.7
"""G9: smallest share of the held-out explained variance that must be there on other images."""


def text_span_card(record: TextSpan, data: CardData, *, level: str = "smoke", seed: int = 0) -> FaithfulnessCard:
    """How far to believe a text span.

    Args:
        record: from :func:`probes.textspan.text_span`.
        data: the CLIP model (`model`, or `extra` where `model` is its vision tower) and images it was not found on.
        level: `smoke`, `standard` or `full`.
        seed: of the bootstrap.

    Raises:
        BadData: no CLIP model; fewer than eight images.
        SplitOverlap, ResultMismatch: images that it was found on; another model.

    Example:
        >>> text_span(clip, images, "scenes").card(CardData(model=clip, images=others))            # doctest: +SKIP
    """
    clip = data.extra if hasattr(data.extra, "encode_text") else data.model
    tower = tower_of(clip)
    refuse_same(record, data.images)
    data = data.at(level, reference=False)
    if len(data.images) < 8:
        raise BadData(f"{len(data.images)} images are too few for shares of variance; give at least 8, better 64.")
    if isinstance(data.images, ImageSet):
        shared = np.isin(image_keys(data.images.ids), record.arrays["image_keys"])
        if shared.any():
            raise SplitOverlap(f"{int(shared.sum())} images are among those that the texts were picked on.")
    draft = draft_of(
        record,
        data,
        tower,
        "text_span",
        {"name": f"text span, bank {record.facts['bank']}", "settings": {"m": record.facts["m"]}},
        {"score": "variance of head writes", "target": "", "contrast": "", "unit": "head"},
        level=level,
        seed=seed,
    )
    heads, gap = _read(record, clip, tower, data, 32)
    draft.gate("G2", gap, "<=", 1e-4, "largest |sum of all terms - embedding| over images (embeddings have length one)")
    few = CardData(model=data.model, images=data.images[:9], extra=data.extra)
    worst = float(np.abs(_read(record, clip, tower, few, 4)[0] - heads[:9]).max() / np.abs(heads).max())
    draft.gate("G5", worst, "<=", thresholds.BATCH, "largest change of a write in batches of four, relative")
    deviation = heads - heads.mean(0)
    bases = {"": "basis", "random directions": "random_basis", "principal components": "pca_basis"}
    arrays = {who: record.arrays[name] for who, name in bases.items()}
    if heads.shape[1] > 1:
        arrays["texts of other heads"] = np.roll(record.arrays["basis"], 1, axis=0)
    total = (deviation**2).sum((1, 2))
    held = {who: (np.einsum("ihd,hkd->ihk", deviation, basis) ** 2).sum((1, 2)) for who, basis in arrays.items()}
    for who, along in held.items():
        draft.ratio(
            "explained",
            along,
            total,
            formula=f"variance of the heads' writes along their {record.facts['m']} directions / all of it; v1",
            direction="high",
            control=who,
            unit="share",
        )
    for letter, who in (("a", "random directions"), ("b", "texts of other heads")):
        if who in held:
            found = stats.paired_difference(held[""], held[who], seed=seed)
            why = f"lower end of the paired 95 % interval of the variance along the texts minus that along {who}"
            draft.gate(f"G6{letter}", float(found.low[0]), ">", 0.0, why)
    variance = (deviation**2).sum((0, 2))
    draft.gate("G8", float((variance <= 1e-12 * variance.max()).mean()), "<", 1.0, "share of heads that write nothing")
    before = float((record.table["held_out"] * record.table["variance"]).sum() / record.table["variance"].sum())
    now = float(held[""].sum() / total.sum())
    why = "explained share here, relative to that on the held-out half of its own images"
    draft.gate("G9", now / before if before > 0 else float("nan"), ">=", KEPT, why)
    without(
        draft,
        {
            "G1": "a text span changes nothing",
            "G3": "it is about what this model's heads write; random directions are the control (G6)",
            "G4": "it is about no target",
            "G7": "texts belong to this model's own text tower",
        },
    )
    each = (np.einsum("ihd,hkd->ihk", deviation, arrays[""]) ** 2).sum((0, 2)) / np.maximum(variance, 1e-30)
    draft.tables["heads"] = pl.DataFrame(
        {"head": list(record.heads), "explained": each, "explained on its own images": record.table["explained"]}
    )
    draft.gates.sort(key=lambda gate: gate.id)
    silent = ["whether the model needs a head for it", "texts outside the bank", "other images", "other models"]
    scope = scope_of(f"texts of {len(record.heads)} heads", draft.subject, draft.data, silent)
    return draft.done(scope=scope, forwards=len(data.images))


def _read(record: TextSpan, clip: Any, tower: Any, data: CardData, batch: int) -> tuple[np.ndarray, float]:
    """What heads write `[image head d_embed]`, and the largest gap of the sum."""
    layers = sorted({int(layer) for layer, _ in record.arrays["keys"] if layer < len(tower.parts.blocks)}) or None
    heads, gap = [], 0.0
    for one in read(clip, data.images, layers=layers, convention=record.facts["convention"], batch_size=batch):
        if one.names != record.heads:
            raise ResultMismatch(f"the text span is about {record.heads[0]} ..., the model has {one.names[0]} ...")
        heads.append(one.heads)
        whole = one.heads.sum(1) + sum(one.others.values())
        gap = max(gap, float(np.abs(whole - one.whole).max()))
    return np.concatenate(heads), gap
