"""Train the bottleneck's head: an elementwise non-linear layer, distillation, few concepts per class.

Algorithm (methods2.md 17.5 steps 1, 4, 5; recipe **X**, remedies of CBM-Suite **N**):

1. Scores `c = norm(z) T^T`, standardised on the training images.
2. `y = W relu(a * c + b) + b0`. The layer is elementwise, so each unit still is one concept, and not linear, so the
   classifier cannot undo the scores. All of it learns by Adam on
   `(1-w) CE + w KL(teacher || student at tau)`, w = 0.5, tau = 2; the teacher is a linear probe of the features, or
   logits that are given. (The KL is not multiplied by tau^2, as distillation often does: w says what it weighs.)
3. With `a`, `b` fixed, `W` and `b0` are solved again with an elastic net: the problem is convex, weights are exactly
   zero. If classes read more than `nec` concepts on average (30), lambda rises until they do not.

Beside it stand the linear probe of the features and the same head on random words.
"""

from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.stats import bootstrap, paired_difference
from probes.bottleneck.bypass import linear_logits, linear_probabilities, teacher_probabilities
from probes.bottleneck.concepts import Concepts, checked_rows, random_concepts
from probes.bottleneck.elastic_net import Sparse, elastic_net, elastic_net_path
from probes.bottleneck.entropy import train_and_test
from probes.bottleneck.record import Bottleneck

Layer = Literal["relu", "linear"]
LAYERS = ("relu", "linear")


def bottleneck(
    train: Any,
    test: Any,
    concepts: Concepts,
    *,
    name: str | None = None,
    target: str | None = None,
    layer: Layer = "relu",
    teacher: str | np.ndarray | None = "probe",
    teacher_weight: float = 0.5,
    tau: float = 2.0,
    nec: int | float = 30,
    lam: float = 7e-4,
    alpha: float = 0.99,
    steps: int = 300,
    rate: float = 0.05,
    words: Concepts | None = None,
    draws: int = 3,
    seed: int = 0,
) -> Bottleneck:
    """A concept-bottleneck head on frozen features, with its references (methods2.md 17.5, **X** recipe).

    Args:
        train: `Features` of training images.
        test: `Features` of other images.
        concepts: the vocabulary.
        name: which features, where there are several.
        target: what is predicted; None: the labels.
        layer: `relu`, or `linear` for the plain chain (which a classifier can undo: see the bypass check).
        teacher: `probe` (a linear probe of the features), the name of features that are logits (`hook_logits`), logits
            `[training image class]`, or None for no distillation.
        teacher_weight: w of the loss.
        tau: temperature of the distillation.
        nec: largest mean number of concepts per class.
        lam, alpha: of the elastic net.
        steps, rate: of Adam, for the elementwise layer.
        words: a pool of random words; None: random directions.
        draws: random vocabularies that get the same head.
        seed: of the draws.

    Returns:
        Bottleneck: first table `what accuracy low high n difference ...` on the test images; `weights` lists the
        concepts of every class.

    Raises:
        SplitOverlap: training images among the test images.
        UnknownName: no such layer or teacher.
        ShapeMismatch: a teacher's logits that do not fit.
        OutOfRange: a setting outside its range.

    Example:
        >>> found = bottleneck(train, test, concepts_of_texts(clip, words))                # doctest: +SKIP
        >>> found.weights(["star"])                                                        # doctest: +SKIP
    """
    if layer not in LAYERS:
        raise unknown("layer", layer, LAYERS)
    if nec < 1 or steps < 0 or draws < 0 or not 0 <= teacher_weight <= 1 or tau <= 0:
        raise OutOfRange(
            f"nec={nec}, steps={steps}, draws={draws}, teacher_weight={teacher_weight}, tau={tau}: nec is 1 or more, "
            "steps and draws 0 or more, the weight lies in [0, 1], tau is positive."
        )
    z, y, z_test, y_test = train_and_test(train, test, name, target)
    classes = _class_names(train, target, y)
    soft = _teacher(teacher, train, concepts.seen(z), y, len(classes), tau)
    fit = {"layer": layer, "soft": soft, "weight": teacher_weight if soft is not None else 0.0, "tau": tau}
    fit |= {"nec": nec, "lam": lam, "alpha": alpha, "steps": steps, "rate": rate}

    def hits(set_: Concepts) -> tuple[np.ndarray, dict[str, np.ndarray], Sparse]:
        arrays, sparse = _fit(set_.scores(z), y, len(classes), **fit)
        scores = (set_.scores(z_test) - arrays["mean"]) / arrays["scale"]
        said = sparse.logits(_activate(scores, arrays["a"], arrays["b"], layer)).argmax(1)
        return (said == y_test).astype(float), arrays, sparse

    own, arrays, sparse = hits(concepts)
    probe = linear_probabilities(concepts.seen(z), y, concepts.seen(z_test))[0].argmax(1) == y_test
    majority = np.bincount(y).argmax() == y_test
    pool = {"words": words} if words is not None else {"d": z.shape[1], "normalise": concepts.normalise}
    others = {"linear probe of the features": probe.astype(float)}
    if draws:
        random = [hits(random_concepts(len(concepts), seed=seed + draw, **pool))[0] for draw in range(draws)]
        others[f"same head on random words ({draws} draws)"] = np.mean(random, axis=0)
    others["most frequent class"] = majority.astype(float)
    rows = [_row("bottleneck", own, None)] + [_row(what, hit, own) for what, hit in others.items()]
    weight = sparse.weight
    listed = [
        {"class": classes[c], "concept": concepts.names[k], "weight": float(weight[c, k])}
        for c in range(len(classes))
        for k in np.argsort(-np.abs(weight[c]), kind="stable")
        if weight[c, k]
    ]
    schema = {"class": pl.String, "concept": pl.String, "weight": pl.Float64}
    return Bottleneck(
        title="Concept bottleneck",
        tables={"accuracy": pl.DataFrame(rows, infer_schema_length=None), "weights": pl.DataFrame(listed, schema)},
        arrays={"directions": concepts.directions, **arrays, "weight": weight, "bias": sparse.bias},
        facts={
            "concepts": list(concepts.names),
            "classes": list(classes),
            "normalise": concepts.normalise,
            "layer": layer,
            "site": train.sites[name or next(iter(train))],
            "features": name or next(iter(train)),
            "nec": sparse.per_class,
            "lam": sparse.lam,
            "kkt": sparse.kkt,
            "distilled": soft is not None,
        },
        words={
            "accuracy": "share of test images whose class is right",
            "difference": "accuracy of the bottleneck minus this one's, paired by image",
            "nec": "mean number of concepts with a weight, per class",
            "weight": "of the concept's activation in the class's logit",
            "kkt": "largest violation of the optimality conditions of the sparse layer",
        },
        caveats=(
            "A concept's name is what was asked of the text tower, not what the score is proven to respond to.",
            *(
                ("The head is linear: a classifier can undo linear scores, see the bypass check.",)
                * (layer == "linear")
            ),
        ),
        provenance=provenance(
            seed=seed,
            features=train.provenance,
            settings={"teacher_weight": teacher_weight, "tau": tau, "alpha": alpha, "steps": steps, "rate": rate},
        ),
    )


def _fit(
    scores: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    *,
    layer: Layer,
    soft: np.ndarray | None,
    weight: float,
    tau: float,
    nec: int | float,
    lam: float,
    alpha: float,
    steps: int,
    rate: float,
) -> tuple[dict[str, np.ndarray], Sparse]:
    """Standardisation, elementwise layer and sparse weights."""
    mean, scale = scores.mean(0), scores.std(0)
    if (scale <= 1e-12 * max(1.0, float(np.abs(mean).max()))).any():
        raise BadData(f"concept {int(scale.argmin())} has the same score on every training image; leave it out.")
    c = (scores - mean) / scale
    a, b = np.ones(c.shape[1]), np.ones(c.shape[1])
    if layer == "relu":
        a, b = _elementwise(c, y, n_classes, soft, weight, tau, steps, rate)
    active, targets = _activate(c, a, b, layer), np.eye(n_classes)[y]
    more = {"alpha": alpha, "teacher": soft, "teacher_weight": weight, "tau": tau}
    sparse = elastic_net(active, targets, lam=lam, steps=3000, **more)
    if sparse.per_class > nec:
        sparse = _sparser(active, targets, sparse, nec, more)
    return {"mean": mean, "scale": scale, "a": a, "b": b}, sparse


def _sparser(active: np.ndarray, targets: np.ndarray, full: Sparse, nec: int | float, more: dict[str, Any]) -> Sparse:
    """The smallest lambda, to a few per cent, with which classes read at most `nec` concepts on average."""
    empty = elastic_net_path(active, targets, n_lambdas=2, ratio=0.99, **more)[0]
    low, fits = full, empty
    for _ in range(8):
        lam = float(np.sqrt(low.lam * fits.lam))
        found = elastic_net(active, targets, lam=lam, steps=1000, start=fits, **more)
        low, fits = (found, fits) if found.per_class > nec else (low, found)
    return elastic_net(active, targets, lam=fits.lam, steps=3000, start=fits, **more)


def _elementwise(
    c: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    soft: np.ndarray | None,
    weight: float,
    tau: float,
    steps: int,
    rate: float,
) -> tuple[np.ndarray, np.ndarray]:
    """`a` and `b` by Adam, together with weights that are thrown away afterwards."""
    x, labels = torch.from_numpy(c), torch.from_numpy(y)
    teacher = None if soft is None else torch.from_numpy(soft)
    a = torch.ones(x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.ones_like(a).requires_grad_(True)
    w = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    b0 = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([a, b, w, b0], lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            said = torch.relu(a * x + b) @ w.T + b0
            loss = (1 - weight) * F.cross_entropy(said, labels) + 1e-4 * w.square().sum()
            if teacher is not None:
                loss = loss + weight * F.kl_div((said / tau).log_softmax(1), teacher, reduction="batchmean")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return a.detach().numpy(), b.detach().numpy()


def _activate(c: np.ndarray, a: np.ndarray, b: np.ndarray, layer: Layer) -> np.ndarray:
    return c if layer == "linear" else np.maximum(a * c + b, 0.0)


def _teacher(
    teacher: str | np.ndarray | None, train: Any, z: np.ndarray, y: np.ndarray, n_classes: int, tau: float
) -> np.ndarray | None:
    """The teacher's probabilities at tau on the training images."""
    if teacher is None:
        return None
    if isinstance(teacher, str):
        if teacher != "probe" and teacher not in train:
            raise unknown("teacher", teacher, ["probe", *train])
        teacher = linear_logits(z, y, z, n_classes=n_classes) if teacher == "probe" else train[teacher]
    logits = checked_rows("the teacher's logits", teacher)
    if logits.shape != (len(y), n_classes):
        raise ShapeMismatch(
            f"the teacher's logits are {list(logits.shape)}; the training set needs {[len(y), n_classes]}."
        )
    return teacher_probabilities(logits, tau)


def _class_names(train: Any, target: str | None, y: np.ndarray) -> tuple[str, ...]:
    n = int(y.max()) + 1
    if target in (None, "label"):
        return tuple(train.class_names) if len(train.class_names) >= n else tuple(f"class {i}" for i in range(n))
    column = np.asarray(train.target(target))
    if np.issubdtype(column.dtype, np.integer):
        return tuple(f"{target} {i}" for i in range(n))
    return tuple(str(value) for value in np.unique(column))


def _row(what: str, hits: np.ndarray, own: np.ndarray | None) -> dict[str, Any]:
    found = bootstrap(hits)
    row = {"what": what, "accuracy": float(found.effect[0]), "low": float(found.low[0]), "high": float(found.high[0])}
    row["n"] = int(found.n[0])
    if own is None:
        return row | {"difference": None, "difference_low": None, "difference_high": None}
    less = paired_difference(own, hits)
    ends = {"difference_low": float(less.low[0]), "difference_high": float(less.high[0])}
    return row | {"difference": float(less.effect[0]), **ends}
