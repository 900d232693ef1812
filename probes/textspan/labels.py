"""What a head is about: do its texts come from one property more often than chance? (methods.md 2.3, **X**)

The published labels of heads were given by hand. Here, for a head with picks `t_1 .. t_m` that add the shares
`e_1 .. e_m` of its variance, and a lexicon (the texts that are about a property),

    score(property) = sum of e_k over picks in the lexicon / sum of e_k

The null hypothesis says that which texts are about what has nothing to do with the picks: the properties are dealt out
anew over the texts of the bank, and the p-value is the share of deals that score at least as high. With many properties
one of them will look good by chance, and with many heads one of these: so the smallest p of a head is compared with the
smallest p of each deal (`head_p`), and these are corrected for the number of heads (Benjamini-Hochberg, `q`). A head is
named by the property that lies furthest above its chance score among those with p below `alpha`, if q of the head is
below `fdr`; else it is `none`.

What it cannot do: with few properties, each a third of the bank, even picks from one property alone are no great
surprise, and a head whose first two or three texts explain most of it cannot reach a small p. And it knows nothing of
how much embeddings vary along a property. So there is a second test without texts (:mod:`probes.textspan.inside`), and
what ablating the heads does (:mod:`probes.textspan.confirm`).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl

from mechvis.data.text_bank import TextBank
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.stats import benjamini_hochberg
from probes.textspan.greedy import Span

PERMUTATIONS = 9999
ALPHA = 0.01
FDR = 0.05
NONE = "none"


def head_properties(
    spans: Sequence[Span],
    bank: TextBank,
    *,
    m: int | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> pl.DataFrame:
    """Scores of every head for every property of a bank, with permutation p-values.

    Args:
        spans: one per head, with picks from this bank.
        bank: the texts with their properties.
        m: how many picks count; None: all.
        permutations: deals of the properties over the texts.
        seed: fixes the deals; the same for all heads.

    Returns:
        `head property score chance p head_p q`: number of the head, the property, its score, the mean score over the
        deals, its p-value; and, the same in all rows of a head, the p-value of its best property, as it is and
        corrected for the number of heads.

    Raises:
        BadData: a bank without properties.
        OutOfRange: fewer than 99 permutations (p could not fall below 0.01), or no pick.
        ShapeMismatch: picks that the bank does not have.

    Example:
        >>> from mechvis.data.text_bank import text_bank
        >>> bank = text_bank("scenes")
        >>> span = Span(picks=np.arange(4), explained=np.full(4, 0.2), basis=np.eye(4), mean=np.zeros(4), variance=1.0)
        >>> head_properties([span], bank).filter(pl.col("property") == "shape")["score"][0]
        1.0
    """
    names = bank.property_names
    if not names:
        raise BadData(f"the text bank {bank.name!r} has no properties; give them in its file, see load_bank.")
    if permutations < 99:
        raise OutOfRange(f"permutations={permutations}: with fewer than 99 no p-value can reach 0.01.")
    if m is not None and m < 1:
        raise OutOfRange(f"m={m}: count at least one pick.")
    kinds = np.array([names.index(name) if name else -1 for name in bank.properties])
    most = max((len(span) for span in spans), default=0)
    for span in spans:
        if len(span) and span.picks.max() >= len(bank):
            raise ShapeMismatch(f"a head picked text {span.picks.max()}, and the bank {bank.name!r} has {len(bank)}.")
    generator = np.random.default_rng(seed)
    # Only the first entries of each deal are looked at, and any distinct texts are as good as those that were picked.
    dealt = np.stack([generator.permutation(kinds)[:most] for _ in range(permutations)])
    rows, best = [], []
    for head, span in enumerate(spans):
        span = span if m is None else span.first(m)
        total = span.explained.sum()
        weights = span.explained / total if total > 0 else span.explained
        smallest = np.ones(permutations)
        own = []
        for number, name in enumerate(names):
            score = float(weights[kinds[span.picks] == number].sum())
            by_chance = (dealt[:, : len(span)] == number) @ weights
            p = _p(score, by_chance) if total > 0 else 1.0
            smallest = np.minimum(smallest, _p_of_deals(by_chance))
            own.append(p)
            rows.append({"head": head, "property": name, "score": score, "chance": float(by_chance.mean()), "p": p})
        best.append((1 + int((smallest <= min(own) + _SAME).sum())) / (1 + permutations) if total > 0 else 1.0)
    corrected = benjamini_hochberg(np.array(best))
    per_head = pl.DataFrame({"head": range(len(spans)), "head_p": best, "q": corrected})
    return pl.DataFrame(rows).join(per_head, on="head", how="left", maintain_order="left")


_SAME = 1e-9
"""Scores that are equal in exact arithmetic must count as equal."""


def _p(score: float, by_chance: np.ndarray) -> float:
    return (1 + int((by_chance >= score - _SAME).sum())) / (1 + len(by_chance))


def _p_of_deals(by_chance: np.ndarray) -> np.ndarray:
    """The p-value that each deal would have had."""
    ordered = np.sort(by_chance)
    above = len(ordered) - np.searchsorted(ordered, by_chance - _SAME, side="left")
    return (1 + above) / (1 + len(ordered))


def labels(
    table: pl.DataFrame, *, alpha: float = ALPHA, fdr: float = FDR, by: Literal["texts", "inside"] = "texts"
) -> list[str]:
    """The property that each head is named by, or `none`, in the order of the heads.

    Args:
        table: from :func:`head_properties`, or from :func:`probes.textspan.inside.inside`.
        alpha: largest p-value of a name.
        fdr: largest p-value of a named head after correction for the numbers of properties and heads.
        by: which of the two tables it is.

    Raises:
        OutOfRange: alpha or fdr outside 0 to 1.
        UnknownName: no such table.

    Example:
        >>> row = {"head": [0], "property": ["shape"], "score": [0.9], "chance": [0.3], "p": [0.2], "q": [0.2]}
        >>> labels(pl.DataFrame(row))
        ['none']
    """
    if not 0 < alpha < 1 or not 0 < fdr < 1:
        raise OutOfRange(f"alpha={alpha}, fdr={fdr}: give numbers between 0 and 1.")
    if by not in _COLUMNS:
        raise unknown("kind of label", by, _COLUMNS)
    value, chance, p, q = (pl.col(name) for name in _COLUMNS[by])
    found = []
    for head in table["head"].unique(maintain_order=True):
        sure = table.filter((pl.col("head") == head) & (p < alpha) & (q < fdr))
        best = sure.with_columns(excess=value - chance).sort("excess", descending=True)
        found.append(best["property"][0] if best.height else NONE)
    return found


_COLUMNS = {
    "texts": ("score", "chance", "p", "q"),
    "inside": ("inside", "inside_chance", "inside_p", "inside_q"),
}
