"""The card of linear probes: is the information there, is it the model's, and does the model use it?

The probe with the best held-out score is judged (or one by name) on images that it has not seen:

1. Accuracy there, beside the commonest class; does it hold up (G9)? 2. From the record: what a random control task
reaches (selectivity, G4) and a model with random weights (G3), with their intervals. 3. Is it read off, or used?
Taking the probe's directions out of the stream, beside random directions of equal number: a probe can be right about
what the model never looks at, and the card then says so.
"""

from typing import Any

import numpy as np
import torch

from mechvis import edits, stats
from mechvis.cards.data import CardData
from mechvis.cards.faithfulness_card import FaithfulnessCard
from mechvis.cards.joint import drops_of_edits
from mechvis.cards.scope import scope_of
from mechvis.data.images import ImageSet
from mechvis.errors import BadData
from probes.cards.drafts import draft_of, refuse_same, without
from probes.features import collect
from probes.linear.record import LinearProbes

WORSE = 0.1
"""G9: largest loss of score on other images."""
DRAWS = {"smoke": 5, "standard": 20, "full": 50}
"""Random subspaces."""


def probe_card(
    record: LinearProbes, data: CardData, *, level: str = "smoke", seed: int = 0, features: str | None = None
) -> FaithfulnessCard:
    """How far to believe a probe.

    Args:
        record: probes of a target with classes.
        data: the model and images (an `ImageSet`) that no probe has seen; `extra`: the target per image, where the
            images have no column of its name.
        level: `smoke`, `standard` or `full`.
        seed: of random directions and the bootstrap.
        features: which probe, by name; None: the one with the best score.

    Raises:
        BadData: a target that is no classes, or that these images do not have.
        SplitOverlap, ResultMismatch: images that it was found on; another model.

    Example:
        >>> probe_model(model, images, target="background").card(CardData(model=model, images=others))  # doctest: +SKIP
    """
    if record.facts["kind"] != "classes":
        raise BadData(f"a card of probes is about classes; the target {record.facts['target']!r} is none.")
    if not isinstance(data.images, ImageSet):
        raise BadData("a card of probes needs an ImageSet, whose columns say what should be read.")
    refuse_same(record, data.images)
    data = data.at(level, reference=False)
    row = record.best() if features is None else record.pick(features=features)
    draft = draft_of(
        record,
        data,
        data.model,
        "probe",
        {"name": f"linear probe of {record.facts['target']}", "settings": {"features": row["features"]}},
        {"score": "accuracy", "target": str(record.facts["target"]), "contrast": "", "unit": "image"},
        level=level,
        seed=seed,
    )
    truth = _truth(record, data)
    rows = collect(data.model, data.images, row["site"], tokens=row["tokens"] or "read", progress=False)[
        row["features"]
    ]
    probe = record.probe(row["features"])
    said = probe.predict(rows)
    right = (said == truth).astype(float)
    commonest = max(record.facts["classes"], key=lambda name: int((truth == name).sum()))
    formula = "share of images on which the probe is right; v1"
    draft.measure("accuracy", right, formula=formula, direction="high")
    majority = (truth == commonest).astype(float)
    draft.measure("accuracy", majority, formula=formula, direction="high", control="commonest class")
    for column, control in (("control", "random labels per type"), ("random_model", "model with random weights")):
        if row.get(column) is not None:
            ends = (row[f"{column}_low"], row[f"{column}_high"])
            draft.given(
                "accuracy",
                row[column],
                *ends,
                n=row["n"],
                formula="share of held-out images of its own data, as recorded; v1",
                direction="high",
                control=control,
            )
    _recorded(draft, row)
    draft.gate("G8", float(np.bincount(np.unique(said, return_inverse=True)[1]).max() / len(said)), "<", 0.99,
               "largest share of images with one answer")  # fmt: skip
    again = probe.predict(rows[::-1])[::-1]
    draft.gate("G5", float((again != said).mean()), "<=", 0.0, "share of answers that change with the order of images")
    found = stats.paired_difference(right, majority, seed=seed)
    why = "lower end of the paired 95 % interval of the accuracy minus that of the commonest class"
    draft.gate("G6", float(found.low[0]), ">", 0.0, why)
    why = "score on its own held-out images minus accuracy on these"
    draft.gate("G9", float(row["score"] - right.mean()), "<=", WORSE, why)
    without(
        draft,
        {
            "G1": "a probe changes nothing",
            "G2": "a probe adds up to nothing",
            "G7": "a probe is fitted to its own target; what it finds elsewhere is another probe",
        },
    )
    _use(draft, data, row, probe, level, seed)
    draft.gates.sort(key=lambda gate: gate.id)
    silent = ["whether the model uses it beyond what erasing shows", "other targets", "other images", "other models"]
    return draft.done(scope=scope_of("a linear probe", draft.subject, draft.data, silent), forwards=len(data.images))


def _truth(record: LinearProbes, data: CardData) -> np.ndarray:
    target, images = record.facts["target"], data.images
    if data.extra is not None:
        found = np.asarray(data.extra)
    elif target in images.columns:
        found = np.asarray(images.columns[target])
    elif images.labels is not None and set(images.class_names) >= set(record.facts["classes"]):
        found = np.array([images.class_names[int(label)] for label in images.labels])
    else:
        raise BadData(f"these images have no column {target!r}; give the target per image as CardData(extra=...).")
    return found[: len(images)]


def _recorded(draft: Any, row: dict[str, Any]) -> None:
    """G3 and G4 from the record's own held-out images."""
    low = row.get("above_random_low")
    if low is None:
        draft.no_gate("G3", "not run", "no model with random weights was probed (baselines=)")
    else:
        why = "lower end of the 95 % interval of the score minus that of a model with random weights"
        draft.gate("G3", float(low), ">", 0.0, why)
    low = row.get("selectivity_low")
    if low is None:
        draft.no_gate("G4", "not run", "no control task was probed")
    else:
        why = "lower end of the 95 % interval of selectivity: score minus that on random labels"
        draft.gate("G4", float(low), ">", 0.0, why)


def _use(draft: Any, data: CardData, row: dict[str, Any], probe: Any, level: str, seed: int) -> None:
    """Taking the probe's directions out, beside random ones."""
    site, model = row["site"], data.model
    axes = model.graph[site].axes
    if "head" in axes or model.parts.head is None or probe.coef_.shape[1] != model.parts.d_model:
        draft.warnings.append(f"Whether the model uses what the probe reads was not measured at {site}.")
        return
    directions = torch.from_numpy(np.asarray(probe.coef_, np.float64))
    rank = int(torch.linalg.matrix_rank(directions))
    basis = torch.linalg.svd(directions, full_matrices=False)[2][:rank]
    generator = torch.Generator().manual_seed(seed)
    random = [torch.randn(rank, basis.shape[1], generator=generator, dtype=torch.float64) for _ in range(DRAWS[level])]
    sets = [[edits.project(site, one.to(model.dtype))] for one in (basis, *random)]
    found = drops_of_edits(model, data.images, sets, "logit_diff")
    formula = "logit difference lost when the directions are taken out at the probe's site, all tokens; v1"
    draft.measure("erasing", found[0], formula=formula, direction="none")
    draft.measure("erasing", found[1:].mean(0), formula=formula, direction="none", control="random directions")
    more = stats.paired_difference(np.abs(found[0]), np.abs(found[1:]).mean(0), seed=seed)
    if not float(more.low[0]) > 0:
        draft.warnings.append(
            "Taking the directions of the probe out changes the output no more than random ones do: what it reads need "
            "not be used."
        )
