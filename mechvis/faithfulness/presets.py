"""Named, versioned lists of metrics with every setting written out: what a table says when it says *standard-v1*.

A preset never changes; a better one gets another version. Each takes patches away in at least two ways, since rankings
of methods depend on it (faithfulness.md 0.4).
"""

from mechvis.errors import unknown
from mechvis.faithfulness.correlation import Monotonicity, MuFidelity, SensitivityN
from mechvis.faithfulness.curves import Abpc, Deletion, Insertion
from mechvis.faithfulness.infidelity import NInf
from mechvis.faithfulness.localisation import (
    Auroc,
    AveragePrecision,
    MaskMetric,
    PointingGame,
    RankAccuracy,
    RelevanceMass,
)
from mechvis.faithfulness.metric import GameMetric, Metric
from mechvis.faithfulness.saco import SaCo


def preset(name: str = "standard-v1") -> list[Metric]:
    """The metrics of a preset.

    Args:
        name: `smoke-v1` (the headline numbers; at most 58 forward passes per image and operator,
            26 for every further map of the same images), `standard-v1` (all that a card
            shows), or `localisation-v1` (needs masks).

    Raises:
        UnknownName: no such preset.

    Example:
        >>> sorted({one.operator for one in preset("smoke-v1")})
        ['blur', 'mean']
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return list(PRESETS[name])


def _smoke(operator: str) -> tuple[GameMetric, ...]:
    raw = {"operator": operator, "form": None, "order": "mean_of_ratios"}
    return (
        Abpc(**raw, steps=8, normalise=False, epsilon=1e-3),
        MuFidelity(**raw, share=0.2, n=32, correlation="spearman"),
        NInf(**raw, n=32, share=0.2, nonnegative=False),  # the sets of mu-fidelity
        SaCo(**raw, groups=8),
    )


def _standard(operator: str) -> tuple[GameMetric, ...]:
    raw = {"operator": operator, "form": None, "order": "mean_of_ratios"}
    prob = raw | {"form": "prob"}
    curve = {"steps": 32, "normalise": False, "epsilon": 1e-3}
    return (
        Abpc(**raw, **curve),
        Deletion(**raw, **curve),
        Insertion(**raw, **curve),
        Abpc(**prob, **curve),
        Deletion(**prob, **curve),
        Insertion(**prob, **curve),
        Abpc(**raw, **curve | {"normalise": True}),
        MuFidelity(**raw, share=0.2, n=100, correlation="spearman"),
        SensitivityN(**raw, shares=(0.1, 0.3, 0.5, 0.7, 0.9), n=50),
        Monotonicity(**raw),
        NInf(**raw, n=100, share=None, nonnegative=False),
        SaCo(**raw, groups=10),
    )


_LOCALISATION: tuple[MaskMetric, ...] = tuple(
    kind(threshold=0.5) for kind in (PointingGame, RelevanceMass, RankAccuracy, Auroc, AveragePrecision)
)

PRESETS: dict[str, tuple[Metric, ...]] = {
    "smoke-v1": _smoke("mean") + _smoke("blur"),
    "standard-v1": _standard("mean") + _standard("blur"),
    "localisation-v1": _LOCALISATION,
}
"""By name and version."""
