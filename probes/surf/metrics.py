"""Faithfulness metrics with one face: (explanation, evaluation) -> error per image, higher is less faithful.

SURF's two, and two older designs that the sanity suite exposes (methods.md 7). Both rivals measure what somebody else
can do with the concepts, not what the explanation says:

* a *trained surrogate* (in the manner of C-SHAP-Eval) learns the classes from concept scores: enough random directions
  hold all information, so random concepts do as well;
* *reconstruct and run* (in the manner of ICE-Eval) rebuilds the embedding from its class's concepts and asks the model
  again: importances are never looked at.
"""

import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mechvis.errors import BadData
from probes.surf.explanation import Explanation
from probes.surf.surrogate import Evaluation, errors, pooled, surrogate

Metric = Callable[[Explanation, Evaluation], Float[np.ndarray, " image"]]
"""Error per image, higher = less faithful."""


def surf_mae(explanation: Explanation, evaluation: Evaluation) -> Float[np.ndarray, " image"]:
    """SURF_MAE per image, in logits (**N**)."""
    return errors(evaluation.logits, surrogate(explanation, evaluation.head, evaluation.embeddings))["mae"]


def surf_emd(explanation: Explanation, evaluation: Evaluation) -> Float[np.ndarray, " image"]:
    """SURF_EMD per image, total variation of the class probabilities (**N**)."""
    return errors(evaluation.logits, surrogate(explanation, evaluation.head, evaluation.embeddings))["emd"]


def trained_surrogate(
    explanation: Explanation, evaluation: Evaluation, *, hidden: int = 32, seed: int = 0
) -> Float[np.ndarray, " image"]:
    """Disagreement with the model of a network that was trained on concept scores (a rival; see the module).

    Args:
        explanation: its concepts are used, its importances are not.
        evaluation: needs `fit` embeddings to train on.
        hidden: width of the network's one hidden layer.
        seed: of its weights.

    Returns:
        1 where the trained network names another class than the model, else 0.

    Raises:
        BadData: no embeddings to train on.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    if evaluation.fit is None:
        raise BadData("a trained surrogate needs other images to train on: Evaluation(..., fit=embeddings).")
    classes = [0] if explanation.one_dictionary else range(len(explanation.concepts))

    def scores(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([explanation.codes(pooled(rows), index) for index in classes], axis=1)

    head, fit = evaluation.head, pooled(evaluation.fit)
    network = MLPClassifier((hidden,), solver="lbfgs", alpha=1e-3, max_iter=300, random_state=seed)
    known = scores(fit)
    centre, spread = known.mean(0), np.maximum(known.std(0), 1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit((known - centre) / spread, head(fit).argmax(1))
    guessed = network.predict((scores(evaluation.embeddings) - centre) / spread)
    return (guessed != evaluation.logits.argmax(1)).astype(np.float64)


def reconstruct_and_run(explanation: Explanation, evaluation: Evaluation) -> Float[np.ndarray, " image"]:
    """Change of the predicted class's logit when the embedding is rebuilt from that class's concepts (a rival).

    Returns:
        Absolute difference in logits, per image.
    """
    head, rows = evaluation.head, pooled(evaluation.embeddings)
    logits = evaluation.logits
    predicted = logits.argmax(1)
    off = np.empty(len(rows))
    for index in np.unique(predicted):
        of = predicted == index
        concepts = explanation.concepts[index]
        start = 0.0 if explanation.offset is None else explanation.offset[index]
        rebuilt = start + (rows[of] - start) @ np.linalg.pinv(concepts) @ concepts
        off[of] = np.abs(head(rebuilt)[:, index] - logits[of, index])
    return off
