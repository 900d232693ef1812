"""Metrics by name: one line each, imported when asked for."""

import importlib

from mechvis.errors import unknown
from mechvis.faithfulness.metric import Metric

_HOME = "mechvis.faithfulness."

METRICS: dict[str, str] = {
    "deletion": "curves.Deletion",
    "insertion": "curves.Insertion",
    "abpc": "curves.Abpc",
    "mu_fidelity": "correlation.MuFidelity",
    "sensitivity_n": "correlation.SensitivityN",
    "monotonicity": "correlation.Monotonicity",
    "infidelity": "infidelity.Infidelity",
    "n_inf": "infidelity.NInf",
    "saco": "saco.SaCo",
    "pointing_game": "localisation.PointingGame",
    "relevance_mass": "localisation.RelevanceMass",
    "rank_accuracy": "localisation.RankAccuracy",
    "auroc": "localisation.Auroc",
    "average_precision": "localisation.AveragePrecision",
    "positive_perturbation": "accuracy_curves.PositivePerturbation",
    "negative_perturbation": "accuracy_curves.NegativePerturbation",
    "road_morf": "accuracy_curves.RoadMorf",
    "road_lerf": "accuracy_curves.RoadLerf",
    "irof": "irof.Irof",
    "pgi": "gaps.Pgi",
    "pgu": "gaps.Pgu",
    "completeness_gap": "completeness.CompletenessGap",
    "sign_agreement": "completeness.SignAgreement",
    "roar": "roar.Roar",
    "kar": "roar.Kar",
    "mprt": "randomisation.Mprt",
    "smooth_mprt": "randomisation.SmoothMprt",
    "efficient_mprt": "randomisation.EfficientMprt",
    "target_randomisation": "randomisation.TargetRandomisation",
    "max_sensitivity": "stability.MaxSensitivity",
    "average_sensitivity": "stability.AverageSensitivity",
    "local_lipschitz": "stability.LocalLipschitz",
    "relative_input_stability": "stability.RelativeInputStability",
    "relative_output_stability": "stability.RelativeOutputStability",
    "relative_representation_stability": "stability.RelativeRepresentationStability",
    "shift_invariance": "invariance.ShiftInvariance",
    "batch_invariance": "invariance.BatchInvariance",
    "token_equivariance": "invariance.TokenEquivariance",
    "sparseness": "complexity.Sparseness",
    "entropy": "complexity.Entropy",
    "effective_complexity": "complexity.EffectiveComplexity",
    "knob_agreement": "knobs.KnobAgreement",
}
"""Name -> module and class."""


def metric(name: str) -> type[Metric]:
    """The class of a metric.

    Raises:
        UnknownName: with the nearest names.

    Example:
        >>> metric("abpc")(operator="blur").describe()["direction"]
        'high'
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    module, word = METRICS[name].rsplit(".", 1)
    return getattr(importlib.import_module(_HOME + module), word)
