"""What a concept set knows of the classes, before any head is trained on it: H(Y|C) in nats (methods2.md 17.5 step 2).

CBM-Suite judges a concept set by the conditional entropy of the class given its scores (**N**). The estimator is ours
(**X**): the held-out cross-entropy of a small classifier that was stopped and calibrated on other images. That is an
upper bound of the entropy: a better classifier could only lower it. The bound means something by comparison only:

1. the same for random vocabularies of equal size (several draws): what any words would know;
2. the same for the features themselves: what there is to know;
3. the classes' own entropy: what is known without looking.

A set whose gap to the random words is below `margin` (0.05 nats) is refused: it names nothing that random words do not.
"""

from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn
from torch.nn import functional as F

from mechvis.errors import BadData, OutOfRange
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap, paired_difference
from probes.bottleneck.concepts import Concepts, checked_labels, checked_rows, random_concepts, refuse_same_images

PATIENCE = 50
"""Steps without a better held-out cross-entropy after which a classifier stops learning."""


def precheck(
    train: Any,
    test: Any,
    concepts: Concepts,
    *,
    name: str | None = None,
    target: str | None = None,
    words: Concepts | None = None,
    draws: int = 5,
    margin: float = 0.05,
    hidden: int = 64,
    steps: int = 300,
    seed: int = 0,
) -> Record:
    """H(Y|C) of a concept set beside random words and the features (methods2.md 17.5, **N** idea, **X** estimator).

    Args:
        train: `Features` of training images; a quarter of them stops and calibrates.
        test: `Features` of other images, on which the cross-entropy is measured.
        concepts: the set.
        name: which features, where there are several.
        target: what is predicted; None: the labels.
        words: a pool of random words; None: random directions.
        draws: how many random vocabularies.
        margin: smallest gap to them in nats with which the set is accepted.
        hidden: hidden units of the classifier.
        steps: steps of its training at the most.
        seed: of the split, the classifiers and the draws.

    Returns:
        A record with one row per set (`concepts`, `random words`, `features`): `entropy` in nats with its interval over
        images; `gap` below random words with its interval; `z`, the gap over its standard error from images *and*
        draws. `facts["accepted"]` is the verdict.

    Raises:
        SplitOverlap: training images among the test images.
        OutOfRange: fewer than two draws.
        BadData: a class that the training images lack.

    Example:
        >>> precheck(train, test, concepts_of_texts(clip, words)).facts["accepted"]       # doctest: +SKIP
        True
    """
    if draws < 2:
        raise OutOfRange(f"draws={draws}: the spread between random vocabularies needs at least two of them.")
    z, y, z_test, y_test = train_and_test(train, test, name, target)
    more = {"hidden": hidden, "steps": steps}
    n_classes = int(max(y.max(), y_test.max())) + 1

    def cross_entropy(set_: Concepts | None, own: int) -> np.ndarray:
        rows = [concepts.seen(x) if set_ is None else set_.scores(x) for x in (z, z_test)]
        return held_out_cross_entropy(rows[0], y, rows[1], y_test, n_classes=n_classes, seed=seed + own, **more)

    pool = {"words": words} if words is not None else {"d": z.shape[1], "normalise": concepts.normalise}
    known = cross_entropy(concepts, 0)
    random = np.stack(
        [cross_entropy(random_concepts(len(concepts), seed=seed + draw, **pool), draw) for draw in range(1, draws + 1)]
    )
    whole = cross_entropy(None, 0)
    rows = [_row(what, own, random) for what, own in (("concepts", known), ("features", whole))]
    rows.insert(1, _row("random words", random.mean(0), None))
    gap = rows[0]["gap"]
    share = np.bincount(y, minlength=n_classes) / len(y)
    return Record(
        kind="concept_precheck",
        title="What the concepts know of the classes",
        tables={"entropy": pl.DataFrame(rows, infer_schema_length=None)},
        arrays={"concepts": known, "random": random, "features": whole},
        facts={
            "accepted": bool(gap >= margin),
            "margin": margin,
            "draws": draws,
            "n_concepts": len(concepts),
            "class_entropy": float(-(share[share > 0] * np.log(share[share > 0])).sum()),
        },
        words={
            "entropy": "held-out cross-entropy of a calibrated classifier, nats: an upper bound of H(Y|C)",
            "gap": "entropy of random words of equal number minus this entropy, nats; higher is better",
            "z": "gap over its standard error, from images and from the draws of random words",
            "class_entropy": "entropy of the classes' frequencies, nats",
            "accepted": f"the gap is at least {margin:g} nats",
        },
        caveats=(
            "The entropies are upper bounds, by one small classifier: compare them with each other only.",
            "A set can pass because it spans the feature space, not because its names are right: see the bypass check.",
        ),
        provenance=provenance(seed=seed, features=train.provenance, settings=more),
    )


def _row(what: str, own: np.ndarray, random: np.ndarray | None) -> dict[str, Any]:
    found = bootstrap(own)
    row = {"set": what, "entropy": float(found.effect[0]), "low": float(found.low[0]), "high": float(found.high[0])}
    row["n"] = int(found.n[0])
    if random is None:
        return row | {"gap": None, "gap_low": None, "gap_high": None, "z": None}
    better = paired_difference(random.mean(0), own)
    over_images = (random.mean(0) - own).std(ddof=1) / np.sqrt(len(own))
    over_draws = random.mean(1).std(ddof=1) * np.sqrt(1 + 1 / len(random))
    gap = float(better.effect[0])
    z = gap / max(float(np.hypot(over_images, over_draws)), 1e-12)
    return row | {"gap": gap, "gap_low": float(better.low[0]), "gap_high": float(better.high[0]), "z": z}


def held_out_cross_entropy(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    n_classes: int | None = None,
    hidden: int = 64,
    steps: int = 300,
    rate: float = 1e-2,
    decay: float = 1e-3,
    share: float = 0.25,
    seed: int = 0,
) -> np.ndarray:
    """Cross-entropy in nats of every test image under a small classifier that was calibrated on other images.

    One hidden layer of ReLUs, Adam on all rows at once, stopped where the cross-entropy of `share` of the training
    images was smallest, then softened by a temperature of 1 or more and one image's worth of a uniform guess (**X**).

    Args:
        train, labels: what it learns from `[image column]`, `[image]`.
        test, test_labels: what is measured.
        n_classes: number of classes; None: from the labels.
        hidden, steps, rate, decay: of the classifier and its training (AdamW).
        share: of the training images that stop and calibrate.
        seed: of split and weights.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((200, 2)); y = (x[:, 0] > 0).astype(int)
        >>> bool(held_out_cross_entropy(x[:100], y[:100], x[100:], y[100:]).mean() < 0.4)
        True
    """
    train, test = checked_rows("training rows", train), checked_rows("test rows", test)
    labels = checked_labels(labels, len(train), n_classes)
    test_labels = checked_labels(test_labels, len(test), n_classes)
    order = np.random.default_rng(seed).permutation(len(train))
    held = max(1, round(share * len(train)))
    if held >= len(train):
        raise BadData(f"share={share} of {len(train)} training images leaves none to learn from.")
    stop, learn = order[:held], order[held:]
    mean, scale = train[learn].mean(0), train[learn].std(0)
    scale = np.where(scale > 1e-12 * max(1.0, np.abs(scale).max()), scale, 1.0)
    x, x_stop, x_test = (torch.from_numpy((rows - mean) / scale).float() for rows in (train[learn], train[stop], test))
    y, y_stop = torch.from_numpy(labels[learn]), torch.from_numpy(labels[stop])
    classes = n_classes or int(max(labels.max(), test_labels.max())) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes))
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    best, kept, at = np.inf, None, 0
    with torch.enable_grad():
        for step in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimiser.step()
            if step % 5 == 4 or step == steps - 1:
                with torch.no_grad():
                    seen = float(F.cross_entropy(net(x_stop), y_stop))
                if seen < best:
                    best, kept, at = seen, [p.detach().clone() for p in net.parameters()], step
                if step - at >= PATIENCE:
                    break
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), kept, strict=True):
            parameter.copy_(value)
        stopped, said = net(x_stop).double().numpy(), net(x_test).double().numpy()

    def calibration(log_t: float) -> float:
        return -float(log_softmax(stopped / np.exp(log_t), axis=1)[np.arange(held), labels[stop]].mean())

    # Only softened: images that stop the training and are all right would ask for certainty, and one wrong test image
    # would then cost everything. For the same reason no class gets less than a share of one image in those.
    temperature = np.exp(minimize_scalar(calibration, bounds=(0.0, 3.0), method="bounded").x)
    likely = np.exp(log_softmax(said / temperature, axis=1)[np.arange(len(test)), test_labels])
    return -np.log((1 - 1 / (held + 1)) * likely + 1 / (held + 1) / classes)


def train_and_test(
    train: Any, test: Any, name: str | None, target: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows and classes of two feature sets, checked to be of different images.

    Raises:
        SplitOverlap, UnknownName, BadData: several features and no name, patches, or classes that were never seen.
    """
    refuse_same_images(train, test, "training and test features")
    if name is None:
        if len(train) != 1:
            raise BadData(
                f"these features hold {len(train)} matrices; say which with name=: {', '.join(list(train)[:6])}."
            )
        name = next(iter(train))
    rows = [checked_rows(f"features {name!r}", features[name]) for features in (train, test)]
    for features, x in zip((train, test), rows, strict=True):
        if len(x) != features.n_images:
            raise BadData(f"{name!r} has {len(x)} rows for {features.n_images} images: use one row per image.")
    known = [np.asarray(features.target(target)) for features in (train, test)]
    if not np.issubdtype(known[0].dtype, np.integer):
        values = np.unique(known[0])
        if strange := sorted(set(np.unique(known[1])) - set(values)):
            raise BadData(f"the test images have {target!r} = {strange[0]!r}, which no training image has.")
        known = [np.searchsorted(values, column) for column in known]
    labels = [checked_labels(column, len(x)) for column, x in zip(known, rows, strict=True)]
    if missing := sorted(set(labels[1].tolist()) - set(labels[0].tolist())):
        raise BadData(f"no training image is of class {missing[0]}, which test images have. Use more training images.")
    if len(np.unique(labels[0])) < 2:
        raise BadData("all training images are of one class: there is nothing to predict.")
    return rows[0], labels[0], rows[1], labels[1]
