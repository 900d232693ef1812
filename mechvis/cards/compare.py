"""Two cards side by side: which of two explanations is better, example by example.

Both must be of the same kind, model, data and level; their examples are then the same, so differences are paired and
what both share of an image's difficulty cancels. Holm's correction goes over all measures that are compared: with many
measures one of them differs by chance.
"""

import numpy as np
import polars as pl

from mechvis import stats
from mechvis.cards.faithfulness_card import FaithfulnessCard, same_thing
from mechvis.errors import ResultMismatch
from mechvis.record import Record


def compare(first: FaithfulnessCard, second: FaithfulnessCard) -> Record:
    """Paired differences of all measures that both cards have per example.

    Args:
        first: a card.
        second: another one.

    Returns:
        A record: `differences` (first minus second, interval, p, Holm-adjusted p, which is better) and `gates` (both
        answers side by side).

    Raises:
        ResultMismatch: cards of different kinds, models, data, levels or versions; or no measure in common.

    Example:
        >>> compare(card, other).table                                     # doctest: +SKIP
    """
    same_thing(first, second)
    mine = {m.key: m for m in first.measures if m.statistic == "mean" and not m.control}
    shared = [
        m for m in second.measures if m.key in mine and m.statistic == "mean" and mine[m.key].formula == m.formula
    ]
    if not shared:
        raise ResultMismatch("the cards have no measure in common that is defined the same way.")
    if first.examples.height != second.examples.height:
        raise ResultMismatch(f"the cards have {first.examples.height} and {second.examples.height} examples.")
    values = [np.stack([_column(card, m.key) for m in shared]) for card in (first, second)]
    found = stats.paired_difference(*values, seed=first.content["seed"])
    table = pl.DataFrame(
        {
            "measure": [m.id for m in shared],
            "removed by": [m.operator for m in shared],
            "first": [mine[m.key].value for m in shared],
            "second": [m.value for m in shared],
            "difference": found.effect,
            "low": found.low,
            "high": found.high,
            "n": found.n,
            "p": found.p,
            "p_holm": stats.holm(found.p),
            "better": [
                _better(m.direction, low, high) for m, low, high in zip(shared, found.low, found.high, strict=True)
            ],
        }
    )
    return Record(
        kind="card_comparison",
        title=f"{first.content['method'].get('name')} beside {second.content['method'].get('name')}",
        tables={"differences": table, "gates": _gates(first, second)},
        facts={"first": first.sha256, "second": second.sha256, "compared": len(shared)},
        words={
            "difference": "first minus second, mean over examples (paired)",
            "p_holm": "p-value corrected for the number of measures (Holm)",
            "better": "which card is better by an interval that excludes zero; empty: cannot be told",
        },
        caveats=("A better measure does not make a failed gate good.",),
    )


def _column(card: FaithfulnessCard, key: str) -> np.ndarray:
    return card.examples[key].cast(pl.Float64).fill_null(np.nan).to_numpy()


def _better(direction: str, low: float, high: float) -> str:
    if direction == "none" or not (low > 0 or high < 0):
        return ""
    return "first" if (low > 0) == (direction == "high") else "second"


def _gates(first: FaithfulnessCard, second: FaithfulnessCard) -> pl.DataFrame:
    answers = [{gate.id: gate.status for gate in card.gates} for card in (first, second)]
    ids = sorted({*answers[0], *answers[1]})
    return pl.DataFrame(
        {"gate": ids}
        | {word: [a.get(id, "not run") for id in ids] for word, a in zip(("first", "second"), answers, strict=True)}
    )
