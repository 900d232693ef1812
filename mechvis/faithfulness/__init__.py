"""Faithfulness metrics that are themselves tested: how far a map says what the model does.

* Curves: `Deletion`, `Insertion`, `Abpc` (the headline), `PositivePerturbation`, `NegativePerturbation`, `RoadMorf`,
  `RoadLerf`, `Irof`; with retraining: `Roar`, `Kar`.
* Correlations and errors over sets of patches: `MuFidelity`, `SensitivityN`, `Monotonicity`, `Infidelity`, `NInf`,
  `SaCo`, `Pgi`, `Pgu`; amounts and signs: `CompletenessGap`, `SignAgreement`.
* Localisation (needs masks; not faithfulness): `PointingGame`, `RelevanceMass`, `RankAccuracy`, `Auroc`,
  `AveragePrecision`.
* Asking the method again: `Mprt`, `SmoothMprt`, `EfficientMprt`, `TargetRandomisation`; `MaxSensitivity` and its
  relatives; `ShiftInvariance`, `BatchInvariance`, `TokenEquivariance`; `KnobAgreement`.
* Descriptions: `Sparseness`, `Entropy`, `EffectiveComplexity`.
* The end questions themselves: `local_effect`, `uses_feature`, `recourse`.
* Claims about methods: `rank_agreement`, `hierarchical`, `variance_shares`.
* `preset(name)`: named, versioned lists with every setting; `measure`: all of a list, each question asked once.

A metric is a frozen value; it gives a `Measured`: one float64 per image (NaN: undefined, counted), curves, baselines.
Patches are taken away by a `mechvis.removal.Game`, or by anything with `scores`, `n_patches` and `grid`.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Metric": "mechvis.faithfulness.metric",
        "GameMetric": "mechvis.faithfulness.metric",
        "Measured": "mechvis.faithfulness.metric",
        "MaskGame": "mechvis.faithfulness.metric",
        "Answers": "mechvis.faithfulness.answers",
        "answers_of": "mechvis.faithfulness.answers",
        "curves": "mechvis.faithfulness.curves",
        "Curves": "mechvis.faithfulness.curves",
        "Deletion": "mechvis.faithfulness.curves",
        "Insertion": "mechvis.faithfulness.curves",
        "Abpc": "mechvis.faithfulness.curves",
        "PositivePerturbation": "mechvis.faithfulness.accuracy_curves",
        "NegativePerturbation": "mechvis.faithfulness.accuracy_curves",
        "RoadMorf": "mechvis.faithfulness.accuracy_curves",
        "RoadLerf": "mechvis.faithfulness.accuracy_curves",
        "Irof": "mechvis.faithfulness.irof",
        "MuFidelity": "mechvis.faithfulness.correlation",
        "SensitivityN": "mechvis.faithfulness.correlation",
        "Monotonicity": "mechvis.faithfulness.correlation",
        "Infidelity": "mechvis.faithfulness.infidelity",
        "NInf": "mechvis.faithfulness.infidelity",
        "SaCo": "mechvis.faithfulness.saco",
        "Pgi": "mechvis.faithfulness.gaps",
        "Pgu": "mechvis.faithfulness.gaps",
        "CompletenessGap": "mechvis.faithfulness.completeness",
        "SignAgreement": "mechvis.faithfulness.completeness",
        "Roar": "mechvis.faithfulness.roar",
        "Kar": "mechvis.faithfulness.roar",
        "Examples": "mechvis.faithfulness.roar",
        "filled_with_mean": "mechvis.faithfulness.roar",
        "features_of": "mechvis.faithfulness.roar",
        "probe_fit": "mechvis.faithfulness.roar",
        "MaskMetric": "mechvis.faithfulness.localisation",
        "PointingGame": "mechvis.faithfulness.localisation",
        "RelevanceMass": "mechvis.faithfulness.localisation",
        "RankAccuracy": "mechvis.faithfulness.localisation",
        "Auroc": "mechvis.faithfulness.localisation",
        "AveragePrecision": "mechvis.faithfulness.localisation",
        "areas_of": "mechvis.faithfulness.localisation",
        "centre_prior": "mechvis.faithfulness.localisation",
        "by_model": "mechvis.faithfulness.explainers",
        "by_class": "mechvis.faithfulness.explainers",
        "by_pixels": "mechvis.faithfulness.explainers",
        "by_place": "mechvis.faithfulness.explainers",
        "Mprt": "mechvis.faithfulness.randomisation",
        "SmoothMprt": "mechvis.faithfulness.randomisation",
        "EfficientMprt": "mechvis.faithfulness.randomisation",
        "TargetRandomisation": "mechvis.faithfulness.randomisation",
        "cascade": "mechvis.faithfulness.randomisation",
        "stages": "mechvis.faithfulness.randomisation",
        "other_classes": "mechvis.faithfulness.randomisation",
        "MaxSensitivity": "mechvis.faithfulness.stability",
        "AverageSensitivity": "mechvis.faithfulness.stability",
        "LocalLipschitz": "mechvis.faithfulness.stability",
        "RelativeInputStability": "mechvis.faithfulness.stability",
        "RelativeOutputStability": "mechvis.faithfulness.stability",
        "RelativeRepresentationStability": "mechvis.faithfulness.stability",
        "ShiftInvariance": "mechvis.faithfulness.invariance",
        "BatchInvariance": "mechvis.faithfulness.invariance",
        "TokenEquivariance": "mechvis.faithfulness.invariance",
        "equivariance": "mechvis.faithfulness.invariance",
        "permuted_model": "mechvis.faithfulness.invariance",
        "shifted_model": "mechvis.faithfulness.invariance",
        "Sparseness": "mechvis.faithfulness.complexity",
        "Entropy": "mechvis.faithfulness.complexity",
        "EffectiveComplexity": "mechvis.faithfulness.complexity",
        "KnobAgreement": "mechvis.faithfulness.knobs",
        "map_shares": "mechvis.faithfulness.knobs",
        "local_effect": "mechvis.faithfulness.questions",
        "LocalEffect": "mechvis.faithfulness.questions",
        "uses_feature": "mechvis.faithfulness.questions",
        "FeatureUse": "mechvis.faithfulness.questions",
        "recourse": "mechvis.faithfulness.questions",
        "samples_needed": "mechvis.faithfulness.questions",
        "rank_agreement": "mechvis.faithfulness.uncertainty",
        "hierarchical": "mechvis.faithfulness.uncertainty",
        "Interval": "mechvis.faithfulness.uncertainty",
        "variance_shares": "mechvis.faithfulness.uncertainty",
        "reliable": "mechvis.faithfulness.uncertainty",
        "FunctionGame": "mechvis.faithfulness.function_game",
        "additive": "mechvis.faithfulness.function_game",
        "METRICS": "mechvis.faithfulness.names",
        "metric": "mechvis.faithfulness.names",
        "preset": "mechvis.faithfulness.presets",
        "PRESETS": "mechvis.faithfulness.presets",
        "measure": "mechvis.faithfulness.measure",
        "titles_of": "mechvis.faithfulness.measure",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.faithfulness.accuracy_curves import NegativePerturbation, PositivePerturbation, RoadLerf, RoadMorf
    from mechvis.faithfulness.answers import Answers, answers_of
    from mechvis.faithfulness.completeness import CompletenessGap, SignAgreement
    from mechvis.faithfulness.complexity import EffectiveComplexity, Entropy, Sparseness
    from mechvis.faithfulness.correlation import Monotonicity, MuFidelity, SensitivityN
    from mechvis.faithfulness.curves import Abpc, Curves, Deletion, Insertion, curves
    from mechvis.faithfulness.explainers import by_class, by_model, by_pixels, by_place
    from mechvis.faithfulness.function_game import FunctionGame, additive
    from mechvis.faithfulness.gaps import Pgi, Pgu
    from mechvis.faithfulness.infidelity import Infidelity, NInf
    from mechvis.faithfulness.invariance import (
        BatchInvariance,
        ShiftInvariance,
        TokenEquivariance,
        equivariance,
        permuted_model,
        shifted_model,
    )
    from mechvis.faithfulness.irof import Irof
    from mechvis.faithfulness.knobs import KnobAgreement, map_shares
    from mechvis.faithfulness.localisation import (
        Auroc,
        AveragePrecision,
        MaskMetric,
        PointingGame,
        RankAccuracy,
        RelevanceMass,
        areas_of,
        centre_prior,
    )
    from mechvis.faithfulness.measure import measure, titles_of
    from mechvis.faithfulness.metric import GameMetric, MaskGame, Measured, Metric
    from mechvis.faithfulness.names import METRICS, metric
    from mechvis.faithfulness.presets import PRESETS, preset
    from mechvis.faithfulness.questions import (
        FeatureUse,
        LocalEffect,
        local_effect,
        recourse,
        samples_needed,
        uses_feature,
    )
    from mechvis.faithfulness.randomisation import (
        EfficientMprt,
        Mprt,
        SmoothMprt,
        TargetRandomisation,
        cascade,
        other_classes,
        stages,
    )
    from mechvis.faithfulness.roar import Examples, Kar, Roar, features_of, filled_with_mean, probe_fit
    from mechvis.faithfulness.saco import SaCo
    from mechvis.faithfulness.stability import (
        AverageSensitivity,
        LocalLipschitz,
        MaxSensitivity,
        RelativeInputStability,
        RelativeOutputStability,
        RelativeRepresentationStability,
    )
    from mechvis.faithfulness.uncertainty import Interval, hierarchical, rank_agreement, reliable, variance_shares
