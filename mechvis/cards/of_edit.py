"""The card of edits: does an intervention do what it should, only that, and more than any push of the same size?

1. The edit is run at several doses: at each site it touches, the activation is moved only a share of the way. Dose zero
   is a gate (G1): it must change nothing at all.
2. Efficacy: change of a metric on the intended images. Locality: accuracy and KL on the others.
3. Control: at each site a random direction of the same length as the edit's change, for every token and head.
4. Dose-response: rank correlation of dose and mean change.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor

from mechvis import stats
from mechvis.attribution.attribute import labels_of
from mechvis.cards import thresholds
from mechvis.cards.data import CardData, subject
from mechvis.cards.draft import Draft
from mechvis.cards.faithfulness_card import FaithfulnessCard
from mechvis.cards.scope import scope_of
from mechvis.data.images import ImageSet
from mechvis.edits import Edit, call
from mechvis.errors import BadData, EffectlessEdit, ShapeMismatch, unknown
from mechvis.files import canonical_json, checksum
from mechvis.keyed import generator_of
from mechvis.metrics import classes_of, get

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the way from the clean to the edited activation."""
DIRECTIONS = {"smoke": 3, "standard": 5, "full": 10}
"""Random directions of equal length."""


def edit_card(
    edits: Edit | Sequence[Edit],
    data: CardData,
    *,
    level: str = "smoke",
    seed: int = 0,
    metric: str = "logit_diff",
    intended: str | Sequence[bool] | None = None,
) -> FaithfulnessCard:
    """How far to believe that edits do what they should.

    Args:
        edits: one or several, applied together.
        data: a model and images.
        level: `smoke`, `standard` or `full`.
        seed: of everything drawn.
        metric: what the edit should move, from `mechvis.metrics`.
        intended: the images that it is meant for: a group's name, or True or False for each image; None: all of them
            (then there is nothing to measure locality on).

    Raises:
        BadData: no edits; nothing is intended, or everything is.
        UnknownName: no such metric or group.

    Example:
        >>> edit_card(edits.zero(site, heads=[2]), data, intended="conflicting")     # doctest: +SKIP
    """
    asked = [edits] if isinstance(edits, Edit) else list(edits)
    if not asked:
        raise BadData("a card of edits needs at least one edit.")
    name, measure = get(metric)
    by_row = any(edit.rows is not None or edit.source_rows is not None for edit in asked)
    whole = len(data.images)
    data = data.at(level, reference=False)
    if by_row and len(data.images) < whole:
        raise BadData(f"edits of single rows belong to their {whole} images: choose a level that looks at all of them.")
    meant = _intended(data.images, intended, whole)[: len(data.images)]
    runner = _Runner(data, asked, measure, seed, len(data.images) if by_row else 64)
    draft = Draft(
        kind="edit",
        object_id=checksum(canonical_json([edit.fingerprint for edit in asked]).encode()),
        subject=subject(data.model),
        method={
            "name": ", ".join(edit.kind for edit in asked),
            "settings": {"edits": [repr(edit) for edit in asked]},
            "claims": {"complete": False, "class_specific": True, "signed": True, "linear": False},
        },
        data=data.facts(),
        task={"score": name, "target": "true or predicted", "contrast": "runner_up", "unit": "edit"},
        level=level,
        seed=seed,
    )
    doses = {dose: runner.change(_dosed(dose)) for dose in DOSES}
    draft.gate(
        "G1", float(np.abs(doses[0.0].moved).max()), "<=", 0.0, "largest change of an output by the edit at dose zero"
    )
    whole_dose = doses[1.0]
    nothing = float(np.abs(whole_dose.moved).max())
    draft.gate("G8", nothing, ">", 0.0, "largest change of an output by the edit; zero: it does nothing here")
    for id, why in (
        ("G2", "an edit adds up to nothing"),
        ("G3", "the edit acts on this model alone"),
        ("G4", "the metric says what should move"),
        ("G7", "whether an edit is right is not known on planted models"),
    ):
        draft.no_gate(id, "not applicable", why)
    randoms = [runner.change(_random(seed, draw)) for draw in range(DIRECTIONS[level])]
    _efficacy(draft, whole_dose, randoms, meant, name, runner, seed)
    _locality(draft, whole_dose, meant)
    _dose(draft, doses, meant)
    _batch(draft, runner, whole_dose, by_row)
    draft.gates.sort(key=lambda gate: gate.id)
    silent = ["other models", "other images", "other metrics than those named", "other ways to the same change"]
    scope = scope_of(f"{len(asked)} edit{'s' * (len(asked) > 1)}", draft.subject, draft.data, silent)
    return draft.done(scope=scope, forwards=runner.forwards)


class _Change:
    """What an edit does to each image."""

    def __init__(self, clean: Tensor, edited: Tensor, before: Tensor, after: Tensor, target: Tensor):
        self.moved = (edited - clean).abs().amax(1).double().cpu().numpy()
        self.metric: Float[np.ndarray, " image"] = (before - after).double().cpu().numpy()
        log_p, log_q = clean.double().log_softmax(1), edited.double().log_softmax(1)
        self.kl = (log_p.exp() * (log_p - log_q)).sum(1).cpu().numpy()
        right = [(logits.argmax(1) == target).double() for logits in (clean, edited)]
        self.accuracy = (right[1] - right[0]).cpu().numpy()


class _Runner:
    """Runs the edits with something done afterwards at every site that they touch."""

    def __init__(self, data: CardData, edits: list[Edit], measure: Callable, seed: int, batch: int):
        self.model, self.images, self.edits, self.measure = data.model, data.images, edits, measure
        self.seed, self.batch, self.forwards = seed, batch, 0
        self.labels = labels_of(data.model, data.images)
        graph = data.model.graph
        self.sites = sorted({site for edit in edits for site in graph.match([edit.site])}, key=graph.names.index)

    def change(self, after: Callable, batch: int | None = None) -> _Change:
        """What the edits do, with `after(before, edited, ids, site)` put in their place."""
        batch = batch or self.batch
        parts = [
            self._some(range(i, min(i + batch, len(self.images))), after) for i in range(0, len(self.images), batch)
        ]
        return _Change(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _some(self, rows: range, after: Callable) -> tuple[Tensor, ...]:
        pixels = self.model.inputs(self.images[rows.start : rows.stop])
        known: dict[str, Tensor] = {}

        def keep(site: str) -> Callable[[Tensor], Tensor]:
            def kept(x: Tensor) -> Tensor:
                known[site] = x.clone()
                return x

            return kept

        def put(site: str) -> Callable[[Tensor], Tensor]:
            return lambda x: after(known[site], x, list(rows), site)

        first = [call(site, keep(site)) for site in self.sites]
        last = [call(site, put(site)) for site in self.sites]
        with warnings.catch_warnings():
            # Keeping a value changes nothing, and is meant to.
            warnings.simplefilter("ignore", EffectlessEdit)
            # Through the same sites: an explicit attention pattern rounds in its own way.
            clean = self.model.run(pixels, first).output
            edited = self.model.run(pixels, [*first, *self.edits, *last]).output
        self.forwards += 2 * len(pixels)
        labels = None if self.labels is None else self.labels[rows.start : rows.stop]
        target, contrast = classes_of(clean, labels)
        before, now = (self.measure(logits, target, contrast, clean) for logits in (clean, edited))
        return clean, edited, before, now, target


def _dosed(dose: float) -> Callable:
    # At dose one the edited activation as it is: a + (b - a) need not be b.
    return lambda before, edited, ids, site: edited if dose == 1 else torch.lerp(before, edited, dose)


def _random(seed: int, draw: int) -> Callable:
    def pushed(before: Tensor, edited: Tensor, ids: list[int], site: str) -> Tensor:
        length = (edited - before).norm(dim=-1, keepdim=True)
        drawn = torch.stack(
            [torch.randn(before.shape[1:], generator=generator_of(seed, one, f"{site} {draw}")) for one in ids]
        ).to(before)
        return before + length * drawn / drawn.norm(dim=-1, keepdim=True)

    return pushed


def _intended(images: Any, intended: Any, n: int) -> Bool[np.ndarray, " image"]:
    if intended is None:
        return np.ones(len(images), bool)
    if isinstance(intended, str):
        groups = list(images.groups) if isinstance(images, ImageSet) and images.groups is not None else []
        if intended not in groups:
            raise unknown("group", intended, sorted(set(groups)))
        found = np.array([group == intended for group in groups])
    else:
        found = np.asarray(intended, bool)
        if found.shape != (n,):
            raise ShapeMismatch(f"intended has {found.shape} entries for {n} images.")
    if not found.any() or found.all():
        raise BadData("intended= must be some of the images and not all; leave it out if the edit is for all of them.")
    return found


def _efficacy(
    draft: Draft, full: _Change, randoms: list[_Change], meant: np.ndarray, name: str, runner: _Runner, seed: int
) -> None:
    control = np.mean([one.metric for one in randoms], 0)
    size = np.mean([np.abs(one.metric) for one in randoms], 0)
    formula = f"{name}(clean) - {name}(edited) on the intended images; v1"
    draft.measure("change", full.metric[meant], formula=formula, direction="none")
    draft.measure("change", control[meant], formula=formula, direction="none", control="random direction")
    formula = f"|{name}(clean) - {name}(edited)| on the intended images; v1"
    draft.measure("change_size", np.abs(full.metric[meant]), formula=formula, direction="high")
    draft.measure("change_size", size[meant], formula=formula, direction="high", control="random direction")
    formula = "KL(clean || edited) on the intended images, nats; v1"
    draft.measure("kl", full.kl[meant], formula=formula, direction="none", unit="nats")
    kl = np.mean([one.kl for one in randoms], 0)
    draft.measure("kl", kl[meant], formula=formula, direction="none", unit="nats", control="random direction")
    if any(site.endswith(("hook_pattern", "hook_attn_scores", "hook_scale")) for site in runner.sites):
        draft.no_gate("G6", "not applicable", "a random direction means nothing for attention patterns and scales")
        return
    found = stats.paired_difference(np.abs(full.metric[meant]), size[meant], seed=seed)
    why = "lower end of the paired 95 % interval: size of the change minus that of random directions of equal length"
    draft.gate("G6", float(found.low[0]), ">", 0.0, why)


def _locality(draft: Draft, full: _Change, meant: np.ndarray) -> None:
    rest = ~meant
    if not rest.any():
        draft.warnings.append("Locality was not measured: the edit is meant for all images (intended=).")
        return
    draft.measure("other_kl", full.kl[rest], formula="KL(clean || edited) on the other images; v1", direction="low")
    formula = "change of accuracy on the other images, clean to edited; v1"
    draft.measure("other_accuracy", full.accuracy[rest], formula=formula, direction="high")
    draft.measure(
        "accuracy",
        full.accuracy[meant],
        formula="change of accuracy on the intended images, clean to edited; v1",
        direction="none",
    )


def _dose(draft: Draft, doses: dict[float, _Change], meant: np.ndarray) -> None:
    found = stats.bootstrap(np.stack([change.metric[meant] for change in doses.values()]), seed=draft.seed)
    draft.tables["dose"] = pl.DataFrame(
        {"dose": list(doses), "change": found.effect, "low": found.low, "high": found.high, "n": found.n}
    )
    means = np.abs(found.effect)
    draft.given(
        "dose_response",
        float(spearmanr(list(doses), means).statistic) if np.ptp(means) else float("nan"),
        n=int(meant.sum()),
        formula="Spearman correlation of dose and |mean change|, five doses; v1",
        direction="high",
        unit="correlation",
    )


def _batch(draft: Draft, runner: _Runner, full: _Change, by_row: bool) -> None:
    if by_row:
        draft.no_gate("G5", "not applicable", "the edits belong to rows of this batch")
        return
    again = runner.change(_dosed(1.0), batch=7)
    worst = float(np.abs(again.metric - full.metric).max() / max(float(np.abs(full.metric).max()), 1e-12))
    draft.gate("G5", worst, "<=", thresholds.BATCH, "largest change of an effect in batches of seven, relative")
