"""How good is a circuit? Measures with intervals, and what chance gives beside them.

* `evaluate` is the whole judgement; it returns a `CircuitEvaluation`.
* `faithfulness`, `necessity`: two shares, in both orders of averaging; `denominator`: of what.
* `curve`: faithfulness over size, CPR and CMD, beside random and reversed orders.
* `random_control`: among random circuits of equal size and layer profile.
* `completeness`, `minimality`: what is missing, and what is too much.
* `sensitivity`: other ablations and metrics; `with_ablation`: the same task under another ablation.
* `stability`: another half of the images.
* `recovery`: AUROC and average precision against a planted truth; `edge_grades`, `node_grades`, `pair_scores`,
  `node_scores` bring truth and scores to one level, `recovery_table` and `over_models` sum up, `false_alarms` is for
  pairs under which nothing is active.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "evaluate": "circuits.evaluation.evaluate",
        "CircuitEvaluation": "circuits.evaluation.evaluation",
        "faithfulness": "circuits.evaluation.faithfulness",
        "necessity": "circuits.evaluation.faithfulness",
        "denominator": "circuits.evaluation.faithfulness",
        "curve": "circuits.evaluation.curve",
        "Curve": "circuits.evaluation.curve",
        "random_control": "circuits.evaluation.random_control",
        "random_circuits": "circuits.evaluation.random_circuits",
        "RandomControl": "circuits.evaluation.random_control",
        "completeness": "circuits.evaluation.completeness",
        "Completeness": "circuits.evaluation.completeness",
        "minimality": "circuits.evaluation.minimality",
        "sensitivity": "circuits.evaluation.sensitivity",
        "with_ablation": "circuits.evaluation.variants",
        "stability": "circuits.evaluation.stability",
        "Stability": "circuits.evaluation.stability",
        "recovery": "circuits.evaluation.recovery",
        "Recovery": "circuits.evaluation.recovery",
        "recovery_table": "circuits.evaluation.recovery",
        "over_models": "circuits.evaluation.recovery",
        "false_alarms": "circuits.evaluation.recovery",
        "edge_grades": "circuits.evaluation.grades",
        "node_grades": "circuits.evaluation.grades",
        "edge_scores": "circuits.evaluation.grades",
        "pair_scores": "circuits.evaluation.grades",
        "node_scores": "circuits.evaluation.grades",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.evaluation.completeness import Completeness, completeness
    from circuits.evaluation.curve import Curve, curve
    from circuits.evaluation.evaluate import evaluate
    from circuits.evaluation.evaluation import CircuitEvaluation
    from circuits.evaluation.faithfulness import denominator, faithfulness, necessity
    from circuits.evaluation.grades import edge_grades, edge_scores, node_grades, node_scores, pair_scores
    from circuits.evaluation.minimality import minimality
    from circuits.evaluation.random_circuits import random_circuits
    from circuits.evaluation.random_control import RandomControl, random_control
    from circuits.evaluation.recovery import Recovery, false_alarms, over_models, recovery, recovery_table
    from circuits.evaluation.sensitivity import sensitivity
    from circuits.evaluation.stability import Stability, stability
    from circuits.evaluation.variants import with_ablation
