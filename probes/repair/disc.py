"""DISC from end to end on frozen features: find the unstable concepts of a head, cure it, and show what that did.

1. Environments inside the classes (:mod:`probes.repair.environments`), or known ones.
2. Concept vectors (:mod:`probes.repair.vectors`).
3. Instability of every concept for every class (:mod:`probes.repair.instability`).
4. A new head by the cure (:mod:`probes.repair.cure`), and beside it, from the same start with as many steps:
   the head learned again without a cure, and cured with random concepts of the same margins (mean over draws).
5. Accuracies by group on other images (:mod:`probes.repair.scoreboard`).

Without the two controls a gain means nothing: learning the head again changes it too, and moving features about in any
direction is a regulariser.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import polars as pl

from mechvis.errors import BadData, OutOfRange, UnsupportedModel, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.repair.cure import cure
from probes.repair.environments import environments as find_environments
from probes.repair.instability import instability, tendencies
from probes.repair.linear_head import LinearHead, checked, fit_head, safe_rate
from probes.repair.scoreboard import against, scoreboard
from probes.repair.vectors import Vectors, random_vectors

HEADS = ("before", "retrained", "DISC")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Repair(Record):
    """What a repair did: accuracies by group, instabilities, and the heads."""

    KIND: ClassVar[str] = "repair"

    def head(self, name: str = "DISC") -> LinearHead:
        """One of the heads: `before`, `retrained` or `DISC`.

        Raises:
            UnknownName: no such head.
        """
        known = [key.removeprefix("weight/") for key in self.arrays if key.startswith("weight/")]
        if name not in known:
            raise unknown("head", name, known)
        return LinearHead(weight=self.arrays[f"weight/{name}"], bias=self.arrays[f"bias/{name}"])

    def unstable(self, top: int = 5) -> pl.DataFrame:
        """The most unstable concepts, each with the class for which it is most so."""
        return self.tables["instability"].head(top)

    def figures(self) -> list:
        """Accuracy by group as bars."""
        from mechvis.plots import bars
        from mechvis.report.blocks import Figure

        shown = self.table.filter(pl.col("group") != "all") if (self.table["group"] != "all").any() else self.table
        figure = bars(
            [f"{row['what']}: {row['group']}" for row in shown.iter_rows(named=True)],
            shown["accuracy"].to_numpy(),
            low=shown["low"].to_numpy(),
            high=shown["high"].to_numpy(),
            title="Accuracy by group",
            label="accuracy",
        )
        return [Figure(figure, "Accuracy on images that nothing was fitted on, with 95 % intervals over images.")]


def disc(
    train: Any,
    test: Any,
    vectors: Vectors,
    *,
    head: LinearHead | None = None,
    name: str | None = None,
    environments: int | np.ndarray = 2,
    rate: float | None = None,
    steps: int = 300,
    look_ahead: float | None = None,
    amplitude: float = 1.0,
    weight: float = 0.5,
    threshold: float = 0.5,
    refresh: int = 0,
    signed: bool = True,
    draws: int = 5,
    seed: int = 0,
) -> Repair:
    """Discover and cure a shortcut of a linear head (methods2.md 17.8: **C** for the scores, port to features **X**).

    Args:
        train: `Features` of training images, with labels.
        test: `Features` of other images, with labels and, best, groups.
        vectors: the concepts.
        head: the head to repair; None: one that is trained on the training images, plainly.
        name: which features, where there are several.
        environments: how many clusters inside each class, or an environment for each training image.
        rate: length of the steps that train heads; None: the longest that is safe for the features.
        steps: of training heads.
        look_ahead: the step `lr` of the tendency scores; None: 10 x rate.
        amplitude, weight, threshold, refresh, signed: of :func:`probes.repair.cure`.
        draws: sets of random concepts.
        seed: of clusters and draws.

    Returns:
        Repair: first table by way and group; `instability` by concept; `against`: DISC minus each other way; heads in
        the arrays.

    Raises:
        SplitOverlap: training images among the test images.
        BadData: no labels, several features and no name, too few images for the environments.
        ShapeMismatch: vectors of another width.
        OutOfRange: no draw.

    Example:
        >>> found = disc(train, test, concept_vectors(x, truth), head=head)                    # doctest: +SKIP
        >>> found.unstable(3)                                                                  # doctest: +SKIP
    """
    if draws < 1:
        raise OutOfRange(f"draws={draws}: random concepts are the control, at least one set of them.")
    x, y, x_test, y_test = _both(train, test, name)
    n_classes = max(len(train.class_names), int(max(y.max(), y_test.max())) + 1)
    if isinstance(environments, int):
        environment = find_environments(x, y, n=environments, seed=seed)
    else:
        environment = np.asarray(environments)
    rate = safe_rate(x) if rate is None else rate
    plain = {"n_classes": n_classes, "steps": steps, "rate": rate}
    before = head if head is not None else fit_head(x, y, **plain)
    scored = partial(_scores, x, y, environment, look_ahead or 10 * rate)
    settings = {"steps": steps, "rate": rate, "amplitude": amplitude, "weight": weight, "threshold": threshold}
    settings |= {"refresh": refresh, "signed": signed}
    start = None if head is None else before
    cured = cure(before, x, y, vectors, partial(scored, vectors), start=start, seed=seed, **settings)
    heads = {"before": before, "retrained": fit_head(x, y, start=start, **plain), "DISC": cured}

    def right(of: LinearHead) -> np.ndarray:
        return (of.logits(x_test).argmax(1) == y_test).astype(float)

    hits = {what: right(of) for what, of in heads.items()}
    others = [random_vectors(vectors, seed=seed + draw) for draw in range(1, draws + 1)]
    control = [cure(before, x, y, v, partial(scored, v), start=start, seed=seed, **settings) for v in others]
    hits["random concepts"] = np.mean([right(of) for of in control], axis=0)
    chances = instability(scored(vectors, before))
    classes = train.class_names or tuple(f"class {i}" for i in range(n_classes))
    worst = chances.argmax(1)
    rows = [
        {
            "concept": vectors.names[q],
            "instability": float(chances[q].max()),
            "class": str(classes[worst[q]]),
            "mean": float(chances[q].mean()),
            "after": float(instability(scored(vectors, cured))[q].max()),
            "margin": float(vectors.margins[q]),
        }
        for q in np.argsort(-chances.max(1), kind="stable")
    ]
    arrays = {f"{part}/{what}": getattr(of, part) for what, of in heads.items() for part in ("weight", "bias")}
    return Repair(
        title="Discover and cure",
        tables={
            "accuracy": scoreboard(hits, test.groups, seed=seed),
            "instability": pl.DataFrame(rows),
            "against": against(hits, test.groups, of="DISC", seed=seed),
        },
        arrays={
            **arrays,
            **{f"hits/{what}": own for what, own in hits.items()},
            "chances": chances,
            "environment": environment,
            "directions": vectors.directions,
        },
        facts={**settings, "draws": draws, "environments": np.bincount(environment).tolist(), "n_train": len(y)},
        words={
            "accuracy": "share of test images whose class is right",
            "change": "accuracy minus that before, paired by image",
            "difference": "accuracy of DISC minus this one's, paired by image",
            "worst": "the group with the lowest accuracy, chosen anew in every resample",
            "instability": "share of the varying tendency of a class that falls to this concept, largest over classes",
            "after": "the same for the cured head",
            "retrained": "the head learned again with as many steps and no cure",
            "random concepts": f"the same cure with {draws} sets of random directions, mean accuracy",
        },
        caveats=(
            "Only the head is changed: a shortcut that the features have lost nothing to cannot be cured there.",
            "Concepts outside the vectors that were given cannot be found.",
        ),
        provenance=provenance(seed=seed, features=train.provenance),
    )


def _scores(
    x: np.ndarray, y: np.ndarray, environment: np.ndarray, rate: float, vectors: Vectors, head: LinearHead
) -> np.ndarray:
    return tendencies(head, x, y, environment, vectors, rate=rate)


def _both(train: Any, test: Any, name: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from probes.bottleneck.concepts import refuse_same_images

    refuse_same_images(train, test, "training and test features")
    if name is None:
        if len(train) != 1:
            raise BadData(f"these features hold {len(train)} matrices; say which with name=.")
        name = next(iter(train))
    x, y = checked(train[name], train.target())
    x_test, y_test = checked(test[name], test.target())
    return x, y, x_test, y_test


def head_of(model: Any) -> LinearHead:
    """The linear head of a wrapped model, read off by sending unit vectors through it.

    Raises:
        UnsupportedModel: no head, one that is not linear, or one behind a projection.

    Example:
        >>> head_of(mechvis.load("scenes-vit")).weight.shape                                   # doctest: +SKIP
        (8, 128)
    """
    import torch

    parts = model.parts
    if parts.head is None or parts.project is not None:
        raise UnsupportedModel(f"{parts.family}: repair needs a linear head right behind the pooled token.")
    width = model.graph["hook_pooled"].sizes[-1]
    eye = torch.eye(width, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        bias = parts.head(torch.zeros_like(eye[:1]))[0]
        weight = (parts.head(eye) - bias).T
        drawn = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(eye)
        far = (parts.head(drawn) - (drawn @ weight.T + bias)).abs().max() / weight.abs().max()
    if not float(far) < 1e-3:
        raise UnsupportedModel(
            f"{parts.family}: its head is not linear ({float(far):.1e} away), so it is not repaired."
        )
    return LinearHead(weight=weight.double().cpu().numpy(), bias=bias.double().cpu().numpy())
