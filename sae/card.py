"""The card of a dictionary: SAE, transcoder or crosscoder.

1. Gates: with its error term the model is unchanged (G1: what is written plus what it misses is the activation); codes
   do not depend on the batch (G5); it explains more variance than random directions with as many active latents, and
   puts more of the model's loss back (G6); the same architecture finds planted atoms (G7); latents fire, and not all of
   them (G8); what it explains is there on images that it was not trained on (G9).
2. Measures, all as ratios of sums over images: FVU (all tokens, and each type apart), L0, loss recovered over zero and
   mean ablation, KL recovered, agreement of the answer, dead latents; the same for the controls: PCA with as many
   coefficients, random directions; the identity is 1 and the zero dictionary 0, else the scale is wrong (D2).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mechvis import stats
from mechvis.cards import thresholds
from mechvis.cards.data import CardData, subject
from mechvis.cards.draft import Draft
from mechvis.cards.faithfulness_card import FaithfulnessCard
from mechvis.cards.scope import scope_of
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, MechvisError
from sae.dictionary import Dictionary
from sae.evaluation.recovered import clean_pass
from sae.evaluation.reference import baseline, reference_rows, refuse_training_images
from sae.evaluation.session import Judged, Session
from sae.evaluation.table import places_of

CONTROLS = ("pca", "random", "identity", "zero")
MOST_DEAD = 0.9
"""G8: a larger share of latents that fire on no judged row is no dictionary any more."""


def dictionary_card(
    dictionary: Dictionary, data: CardData, *, level: str = "smoke", seed: int = 0, site: str | None = None
) -> FaithfulnessCard:
    """How far to believe a dictionary.

    Args:
        dictionary: what is judged.
        data: the model and images (an `ImageSet`) that it was not trained on; `chosen_on`: those that it was.
        level: `smoke`, `standard` or `full`.
        seed: of what is drawn.
        site: where it belongs, for one that was trained on a plain matrix.

    Raises:
        BadData: no image set, or fewer than six images.
        SplitOverlap: images that it was trained on.
        UnknownSite, ShapeMismatch: it does not fit the model.

    Example:
        >>> dictionary.card(CardData(model=model, images=others))                  # doctest: +SKIP
    """
    if not isinstance(data.images, ImageSet) or len(data.images) < 6:
        raise BadData("a dictionary is judged on an ImageSet of at least 6 images.")
    note = refuse_training_images("the dictionary", dictionary, data.images, data.chosen_on)
    data = data.at(level)
    reads, writes = places_of({"the dictionary": dictionary}, data.model, site, None, "all")
    known = reference_rows(data.model, data.reference, {**reads, **writes}, seed=seed, progress=False)
    wanted = {"recovered"} if data.model.parts.head is not None else set()
    session = Session(model=data.model, reads=reads, writes=writes, known=known, wanted=wanted, judge=None, pool="mean")
    judged = {"": Judged(dictionary=dictionary, kind="trained")}
    k = _active(dictionary, data.model, data.reference, reads)
    if not dictionary.ends.transcodes:
        rows = {name: known.rows[place.site] for name, place in reads.items()}
        for name in CONTROLS:
            made = baseline(name, rows, dictionary.n_latents, k, seed)
            judged[name] = Judged(dictionary=made.to(data.model.device), kind="baseline")
    session.judge_images(judged, data.images, 64, False)
    draft = _draft(dictionary, data, level, seed)
    if note:
        draft.warnings.append(note)
    frequency = _reconstruction(draft, judged)
    shares = _recovered(draft, session, judged) if wanted else {}
    _gates(draft, dictionary, data, reads, writes, judged, shares, frequency, seed)
    _planted(draft, dictionary, seed)
    draft.gates.sort(key=lambda gate: gate.id)
    silent = ["what latents mean", "other sites", "other models", "images of another kind"]
    scope = scope_of(f"a dictionary of {dictionary.n_latents} latents", draft.subject, draft.data, silent)
    return draft.done(scope=scope, forwards=len(data.images) * (1 + len(judged) + 2) + len(data.reference))


def _draft(dictionary: Dictionary, data: CardData, level: str, seed: int) -> Draft:
    ends = dictionary.ends
    return Draft(
        kind="dictionary",
        object_id=dictionary.fingerprint,
        subject=subject(data.model),
        method={
            "name": type(dictionary.architecture).__name__,
            "settings": {
                "reads": list(ends.reads),
                "writes": list(ends.writes),
                "latents": dictionary.n_latents,
                "architecture": repr(dictionary.architecture),
            },
            "claims": {"complete": False, "class_specific": False, "signed": False, "linear": True},
        },
        data=data.facts(),
        task={"score": "variance and loss", "target": "true", "contrast": "", "unit": "latent"},
        level=level,
        seed=seed,
    )


def _active(dictionary: Dictionary, model: Any, reference: Any, reads: Any) -> int:
    """Active latents of a row, on reference images: as many coefficients as controls get."""
    with torch.no_grad():
        clean = clean_pass(model, reference[: min(16, len(reference))], [place.site for place in reads.values()])
        x = torch.cat([place.take(clean.activations[place.site]) for place in reads.values()], dim=-1)
        return max(1, round(float((dictionary.encode(x) != 0).sum(-1).double().mean())))


def _reconstruction(draft: Draft, judged: dict[str, Judged]) -> np.ndarray:
    """FVU, L0 and dead latents; returns how often each latent fires."""
    for who, one in judged.items():
        for kind, sums in one.fit.per_image().items():
            suffix = "" if kind == "all" else f", {kind}"
            draft.ratio(
                f"fvu{suffix}",
                sums["error"],
                sums["variance"],
                formula="sum |x - x_hat|^2 / sum |x - mean|^2 over judged rows; v1",
                direction="low",
                control=who,
            )
        sums = one.fit.per_image()["all"]
        given = {"formula": "active latents of a row, mean; v1", "direction": "none", "control": who}
        draft.ratio("l0", sums["l0"], sums["rows"], **given)
    fit = judged[""].fit.found(draft.seed)["all"]
    draft.given(
        "dead",
        fit.dead,
        n=fit.images,
        formula=f"share of latents that fire on none of {fit.rows} judged rows; v1",
        direction="low",
        unit="share",
    )
    return fit.frequency


def _recovered(draft: Draft, session: Session, judged: dict[str, Judged]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Shares of loss and KL that are put back; returns (numerator, denominator) of the loss by whose."""
    loss = "loss" if session.clean.loss else "own"
    found = {}
    for who, one in judged.items():
        for name, gone in session.ablated.items():
            base, clean, now = (o.column(loss) for o in (gone, session.clean, one.outputs))
            text = f"(L_{name} - L_sae) / (L_{name} - L_clean), ratio of sums over images; v1"
            given = {"formula": text, "direction": "high", "operator": name, "control": who, "unit": "share"}
            draft.ratio("loss_recovered", base - now, base - clean, **given)
            if name == "zero":
                found[who] = (base - now, base - clean)
            kl = gone.column("kl")
            text = f"(KL_{name} - KL_sae) / KL_{name}, ratio of sums over images; v1"
            given = {"formula": text, "direction": "high", "operator": name, "control": who, "unit": "share"}
            draft.ratio("kl_recovered", kl - one.outputs.column("kl"), kl, **given)
        formula = "share of images with the clean run's answer; v1"
        draft.measure("agree", one.outputs.column("agree"), formula=formula, direction="high", control=who)
    return found


def _gates(
    draft: Draft,
    dictionary: Dictionary,
    data: CardData,
    reads: Any,
    writes: Any,
    judged: dict[str, Judged],
    shares: dict[str, Any],
    frequency: np.ndarray,
    seed: int,
) -> None:
    from sae.splicing.splice import splice

    few = data.images[: min(8, len(data.images))]
    pixels = data.model.inputs(few)
    try:
        plain, spliced = (one.run(pixels).output for one in (data.model, splice(data.model, dictionary)))
        worst = float((plain - spliced).abs().max() / plain.abs().max().clamp(min=1e-12))
        draft.gate(
            "G1", worst, "<=", 1e-5, "largest change of an output by the dictionary with its error term, relative"
        )
    except MechvisError as error:
        draft.no_gate("G1", "not run", f"it cannot be spliced into this model: {error}")
    if "identity" in judged:
        for id, who, expected in (("G1b", "identity", 0.0), ("G1c", "zero", 1.0)):
            sums = judged[who].fit.per_image()["all"]
            value = float(sums["error"].sum() / sums["variance"].sum())
            # The zero dictionary writes nothing: its error also holds the mean, so it is one or more.
            off = abs(value - expected) if who == "identity" else max(0.0, expected - value)
            draft.gate(id, off, "<=", 1e-6, f"FVU of the {who} dictionary, distance from what it must be")
    for id, why in (
        ("G2", "latents need not add up to the activation: FVU says how far they do"),
        ("G3", "a dictionary of random weights would be another one; random directions are the control (G6)"),
        ("G4", "a dictionary is about no output"),
    ):
        draft.no_gate(id, "not applicable", why)
    with torch.no_grad():
        clean = clean_pass(data.model, few, [place.site for place in reads.values()])
        x = torch.cat([place.take(clean.activations[place.site]) for place in reads.values()], dim=-1)
        together = dictionary.encode(x)
        alone = torch.cat([dictionary.encode(x[i : i + 1]) for i in range(len(x))])
    worst = float((together - alone).abs().max() / together.abs().max().clamp(min=1e-12))
    draft.gate("G5", worst, "<=", thresholds.BATCH, "largest change of a code when images are encoded alone, relative")
    _better(draft, judged, shares, seed)
    dead = float((frequency == 0).mean())
    draft.gate("G8", dead, "<", MOST_DEAD, "share of latents that fire on none of the judged rows")
    value = next(m for m in draft.measures if m.key == "fvu/this")
    high = float("nan") if value.high is None else value.high
    why = "upper end of the 95 % interval of FVU on images that it was not trained on; 1 is the mean activation"
    draft.gate("G9", high, "<", 1.0, why)


def _better(draft: Draft, judged: dict[str, Judged], shares: dict[str, Any], seed: int) -> None:
    if "random" not in judged:
        draft.no_gate("G6", "not run", "controls write what they read: beside a transcoder there are none")
        return
    own, other = (judged[who].fit.per_image()["all"]["error"] for who in ("", "random"))
    found = stats.paired_difference(other, own, seed=seed)
    why = "lower end of the paired 95 % interval of the squared error by random directions of equal L0 minus its own"
    draft.gate("G6a", float(found.low[0]), ">", 0.0, why)
    if shares:
        found = stats.paired_difference(shares[""][0], shares["random"][0], seed=seed)
        why = (
            "lower end of the paired 95 % interval: loss put back (over zero ablation) minus that by random directions"
        )
        draft.gate("G6b", float(found.low[0]), ">", 0.0, why)


def _planted(draft: Draft, dictionary: Dictionary, seed: int) -> None:
    """G7: the same architecture, made small, on rows whose atoms are known."""
    from mechvis.testing import planted_dict
    from sae.evaluation.recovery import recovery
    from sae.training.settings import Training
    from sae.training.train import train

    if len(dictionary.ends.reads) > 1 or dictionary.ends.transcodes:
        draft.no_gate("G7", "not applicable", "planted atoms are of one site that is read and written")
        return
    planted = planted_dict(8000, concepts=48, width=48, active=3, noise=0.05, equal=False, seed=seed)
    settings = {"n_latents": 72} | ({"k": 3} if hasattr(dictionary.architecture, "k") else {})
    try:
        small = replace(dictionary.architecture, **settings)
        rows = torch.as_tensor(planted.vectors).float()
        training = Training(tokens=120_000, batch=512, lr=2e-2, seed=seed)
        found = recovery(train(rows, small, training, progress=False).dictionary, planted.concepts)
    except (MechvisError, TypeError, ValueError, RuntimeError) as error:
        draft.no_gate("G7", "not run", f"this architecture with its settings does not fit the planted rows: {error}")
        return
    import polars as pl

    draft.tables["planted"] = pl.DataFrame(
        {
            "suite": ["F6 (48 atoms in width 48, 72 latents)"],
            "mean max cosine": [float(found.found)],
            "random directions": [float(found.random)],
        }
    )
    why = "mean cosine of planted atoms and the nearest latents of the same architecture, trained on them for seconds"
    draft.gate("G7", float(found.found), ">=", 0.9, why)
