"""TextSpan of all heads of a CLIP model: which texts span what each head writes (methods.md 2.2 and 2.3).

1. One pass over the images: the heads' direct effects (`mechvis.decompose`), divided by the length of the embedding, as
   mean and covariance per head, for two random halves of the images.
2. Per head: the greedy choice of texts (:mod:`probes.textspan.greedy`).
3. Controls: random directions for texts, other heads' texts, principal components, the other half of the images.
4. Where the bank knows properties: names of heads, with permutation p-values (:mod:`probes.textspan.labels`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mechvis.data.text_bank import TextBank, text_bank
from mechvis.data.text_encoding import encode_bank
from mechvis.decompose.terms import Convention
from mechvis.errors import BadData, OutOfRange
from mechvis.provenance import provenance
from probes.textspan import controls
from probes.textspan.greedy import STOP, Score, Span, span_moments
from probes.textspan.inside import inside
from probes.textspan.labels import ALPHA, FDR, PERMUTATIONS, head_properties, labels
from probes.textspan.moments import Moments, moments_of
from probes.textspan.reading import LAYERS, Layers, Reading, read, tower_of
from probes.textspan.record import CAVEATS, WORDS, TextSpan, image_keys

_SHOWN = 3
"""Texts of a head in the first table."""


def text_span(
    clip: Any,
    images: Any,
    bank: str | Path | TextBank = "general",
    *,
    layers: Layers = LAYERS,
    m: int = 20,
    rank: int | None = None,
    svd_center: bool = True,
    score: Score = "deviation",
    unit_pool: bool = True,
    center_pool: bool = False,
    stop: float = STOP,
    convention: Convention = "linear",
    permutations: int = PERMUTATIONS,
    alpha: float = ALPHA,
    fdr: float = FDR,
    draws: int = 5,
    cache: str | Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> TextSpan:
    """Find the texts that span what each head of a CLIP model's image tower writes.

    Source: Gandelsman, Efros and Steinhardt, "Interpreting CLIP's image representation via text-based decomposition"
    (ICLR 2024); the algorithm is that of its released code (**C**) but for the named arguments (**X**).

    Args:
        clip: a wrapped CLIP model.
        images: an `ImageSet`, or pixels; labels are not used. At least four.
        bank: the texts: a bank, `general`, `scenes`, or a file.
        layers: whose heads; a negative number: that many last ones. None: all.
        m: texts per head, at most (**C**: 20 in the published commands).
        rank: directions that texts are projected onto; None: the width of a head (**X**; the code has 80, that of
            ViT-H/14).
        svd_center: are these directions those of the centred writes? (**X**; False in the code)
        score: `deviation` (**C**) or `normalised` by the length that is left of a text (**X**).
        unit_pool: bring texts to unit length first (**X**).
        center_pool: take the mean of the texts off (**X**; see :mod:`probes.textspan.greedy`): names of heads then
            depend less on what else is in the bank.
        stop: share of a head's variance that is too little to go on (**P**).
        convention: what becomes of constant terms in the decomposition.
        permutations: deals of the properties over the texts, for the p-values.
        alpha: largest p-value of a head's name.
        fdr: largest p-value of a named head after correction for properties and heads.
        draws: random pools.
        cache: a folder that keeps the embeddings of the texts.
        batch_size: images per forward pass.
        seed: of the halves, the random pools and the deals.
        progress: show a progress bar.

    Returns:
        A :class:`TextSpan`: tables `heads`, `picks` and (where the bank has properties) `properties`; arrays with the
        spans, the principal components and the mean of everything that is no head.

    Raises:
        BadData: no CLIP model, too few images, a bank that is none or that the model cannot read.
        OutOfRange, UnknownName, NotFinite: settings out of range; what the decomposition raises.

    Example:
        >>> clip = mechvis.load("scenes-clip")                                          # doctest: +SKIP
        >>> found = text_span(clip, mechvis.data.scenes(512, seed=1), "scenes", m=5)    # doctest: +SKIP
        >>> found.labels["colour"], found.texts("L1H0")["text"][0]                      # doctest: +SKIP
    """
    tower, bank = tower_of(clip), text_bank(bank)
    if len(images) < 4:
        raise BadData(f"{len(images)} image(s) are too few: a span needs two halves of at least two images each.")
    if draws < 1 or m < 1:
        raise OutOfRange(f"draws={draws}, m={m}: give at least 1 of each.")
    pool = encode_bank(clip, bank, cache=cache)
    pooling = tower.parts.pooling
    rank = rank or (tower.cfg.d_head if pooling is None else pooling.attn.d_head)
    halves, rest, first = _halves(
        read(clip, images, layers=layers, convention=convention, batch_size=batch_size, progress=progress),
        len(images),
        seed,
    )
    settings = {"rank": rank, "svd_center": svd_center, "score": score, "stop": stop}
    settings |= {"unit_pool": unit_pool, "center_pool": center_pool}
    moments = halves[0] + halves[1]
    spans = [span_moments(moments, head, pool, m=m, **settings) for head in range(len(first.names))]
    random, random_spans = controls.random_pools(moments, len(bank), m=m, draws=draws, seed=seed, **settings)
    cross = controls.crossed(spans, moments, m)
    agreed = controls.agreement(halves, pool, m=m, **settings)
    tables = {
        "heads": _heads(first, spans, moments, bank, random, cross, agreed),
        "picks": _picks(first.names, spans, bank),
    }
    facts: dict[str, Any] = {"n": moments.n, "m": m, **settings, "convention": convention, "bank": bank.name}
    facts |= {"texts": len(bank), "alpha": alpha, "fdr": fdr, "properties": list(bank.property_names), "draws": draws}
    named = {name: ["none"] * len(spans) for name in ("label", "inside")}
    if bank.property_names:
        table = head_properties(spans, bank, permutations=permutations, seed=seed)
        named["label"] = labels(table, alpha=alpha, fdr=fdr)
        if any(len(bank.values(name)) > 1 for name in bank.property_names):
            along = inside(moments.covariance, bank, pool, seed=seed)
            named["inside"] = labels(along, alpha=alpha, fdr=fdr, by="inside")
            table = table.join(along, on=["head", "property"], how="left", maintain_order="left")
        table = table.with_columns(pl.col("head").replace_strict(dict(enumerate(first.names)), return_dtype=pl.String))
        tables["properties"] = table
        facts["permutations"] = permutations
    tables["heads"] = tables["heads"].with_columns(**{name: pl.Series(values) for name, values in named.items()})
    return TextSpan(
        title=f"Texts that span {len(spans)} heads of {clip.vision.name}, {moments.n} images, bank {bank.name}",
        tables=tables,
        arrays={
            "picks": _stacked([span.picks for span in spans], m, -1),
            "explained": _stacked([span.explained for span in spans], m, 0.0),
            "basis": _stacked([span.basis for span in spans], m, 0.0),
            "random_basis": _stacked([span.basis for span in random_spans], m, 0.0),
            "pca_basis": np.stack([controls.principal(each, m) for each in moments.covariance]),
            "mean": moments.mean,
            "rest_mean": rest,
            "keys": np.array(first.keys),
            "image_keys": image_keys(getattr(images, "ids", ())),
        },
        facts=facts,
        words=WORDS,
        caveats=CAVEATS,
        provenance=provenance(
            model=clip.vision,
            images=images if hasattr(images, "fingerprint") else None,
            seed=seed,
            bank=bank.fingerprint,
        ),
    )


def _halves(readings: Any, n: int, seed: int) -> tuple[tuple[Moments, Moments], np.ndarray, Reading]:
    """Moments of two random halves in one pass, the mean of everything but the heads, and the first batch."""
    second = np.zeros(n, bool)
    second[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
    found: list[Moments | None] = [None, None]
    rest, first = 0.0, None
    for batch in readings:
        first = first or batch
        rest = rest + batch.rest.sum(0)
        for half in (0, 1):
            own = second[batch.where] == bool(half)
            if own.any():
                part = moments_of(batch.heads[own])
                found[half] = part if found[half] is None else found[half] + part
    return (found[0], found[1]), rest / n, first


def _heads(
    first: Reading,
    spans: Sequence[Span],
    moments: Moments,
    bank: TextBank,
    random: np.ndarray,
    cross: np.ndarray,
    agreed: controls.Agreement,
) -> pl.DataFrame:
    m = random.shape[-1]
    total = moments.total
    own = np.eye(len(spans), dtype=bool)
    rows = []
    for head, span in enumerate(spans):
        last = max(len(span) - 1, 0)
        others = cross[head, ~own[head], last]
        rows.append(
            {"head": first.names[head], "layer": first.keys[head][0], "label": "none", "inside": "none"}
            | {"texts": [bank.texts[i] for i in span.picks[:_SHOWN]]}
            | {"explained": float(controls.padded(span.cumulative, m)[-1]), "held_out": float(agreed.held_out[head])}
            | {"random": float(random[:, head, last].mean()), "random_low": float(random[:, head, last].min())}
            | {"random_high": float(random[:, head, last].max())}
            | {"shuffled": float(others.mean()) if len(others) else None}
            | {"pca": float(controls.pca_bound(moments.scatter[head] / moments.n, m)[last])}
            | {"overlap": float(agreed.overlap[head]), "variance": float(total[head]), "picks": len(span)}
            | {"n": moments.n}
        )
    return pl.DataFrame(rows, schema_overrides={"shuffled": pl.Float64})


def _picks(names: Sequence[str], spans: Sequence[Span], bank: TextBank) -> pl.DataFrame:
    rows = [
        {"head": name, "rank": rank + 1, "text": bank.texts[pick], "property": bank.properties[pick]}
        | {"word": bank.words[pick], "share": float(span.explained[rank]), "cumulative": float(span.cumulative[rank])}
        for name, span in zip(names, spans, strict=True)
        for rank, pick in enumerate(span.picks)
    ]
    columns = {"head": pl.String, "rank": pl.Int64, "text": pl.String, "property": pl.String, "word": pl.String}
    return pl.DataFrame(rows, schema={**columns, "share": pl.Float64, "cumulative": pl.Float64})


def _stacked(parts: Sequence[np.ndarray], m: int, fill: float | int) -> np.ndarray:
    """`[head pick ...]` of lists of picks; `fill` where a head has fewer than `m`."""
    return np.stack(
        [np.pad(part, [(0, m - len(part)), *[(0, 0)] * (part.ndim - 1)], constant_values=fill) for part in parts]
    )
