"""The card of concepts of a class: do they stand for the activations, and does the model care about them as stated?

On images of the class that the concepts were not found on:

1. How much of the activations they keep, and of the model's own answer when it is fed with concepts alone; beside as
   many random concepts, coded in the same way, which must be worse (G6a). Surrogates that random concepts match explain
   nothing.
2. The stated importances: concepts are taken out in their order and in random orders (G6b), and measured again (G9).
"""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr

from mechvis import stats
from mechvis.cards import thresholds
from mechvis.cards.data import CardData
from mechvis.cards.faithfulness_card import FaithfulnessCard
from mechvis.cards.scope import scope_of
from mechvis.errors import BadData
from mechvis.keyed import numpy_of
from probes.cards.drafts import draft_of, refuse_same, without
from probes.concepts.curves import concept_curves
from probes.concepts.factors import Factorisation
from probes.concepts.importance import importance_in
from probes.concepts.pieces import images_of_class
from probes.concepts.record import Concepts
from probes.concepts.tail import activations, class_of, named, start_layer, tail_of

UNSIGNED = ("sobol", "tcav")
"""Importances without a sign."""
ORDERS = 5
"""Random orders."""
MOST = 64
"""Images that are asked for importance at the most."""


def concepts_card(record: Concepts, data: CardData, *, level: str = "smoke", seed: int = 0) -> FaithfulnessCard:
    """How far to believe concepts.

    Args:
        record: from :func:`probes.concepts.craft.craft`.
        data: the model and images, of which those of the class are used; none that the concepts were found on.
        level: `smoke`, `standard` or `full`.
        seed: of random concepts, orders and the bootstrap.

    Raises:
        BadData: concepts of a given dictionary, or of another kind than patches; fewer than four images of the class.
        SplitOverlap, ResultMismatch: images that they were found on; another model.

    Example:
        >>> craft(model, images, "star").card(CardData(model=model, images=others))                # doctest: +SKIP
    """
    fitted, facts, model = record.factorisation(), record.facts, data.model
    site, number = facts["site"], class_of(model, facts["target"])
    if start_layer(model, site) is None:
        raise BadData(f"a card of concepts is about patches of a layer; these are crops at {site}.")
    refuse_same(record, data.images)
    chosen = (record.provenance.get("settings") or {}).get("chosen", "predicted")
    of_class = images_of_class(model, named(model, data.images), number, chosen, 64)
    data = CardData(model=model, images=of_class, chosen_on=data.chosen_on).at(level, reference=False)
    draft = draft_of(
        record,
        data,
        model,
        "concepts",
        {"name": f"{facts['method']} with {facts['importance']}", "settings": {"site": site, "class": facts["target"]}},
        {"score": "logit", "target": str(facts["target"]), "contrast": "", "unit": "concept"},
        level=level,
        seed=seed,
    )
    rows, before, logits = activations(model, data.images, site, batch_size=64)
    settings = {
        name: value
        for name, value in (record.provenance.get("settings") or {}).items()
        if name in ("prefix", "residual", "answer")
    }
    ours, game_parts = _kept(model, site, number, fitted, rows, before, logits, settings)
    random = _kept(model, site, number, _random(fitted, seed), rows, before, logits, settings)[0]
    for who, kept in (("", ours), ("random concepts", random)):
        text = "sum |a - UV|^2 / sum |a - mean|^2 over places; v1"
        draft.ratio("fvu", kept["error"], kept["variance"], formula=text, direction="low", control=who)
        text = "share of images that keep their class when the model is fed with concepts alone; v1"
        draft.measure("same_class", kept["same"], formula=text, direction="high", control=who)
        text = "|logit of the class - the same fed with concepts alone|; v1"
        draft.measure("answer_error", kept["answer"], formula=text, direction="low", control=who, unit="logit")
    found = stats.paired_difference(random["error"], ours["error"], seed=seed)
    why = "lower end of the paired 95 % interval of the squared error by random concepts minus their own"
    draft.gate("G6a", float(found.low[0]), ">", 0.0, why)
    _importances(draft, record, game_parts, seed)
    again = _kept(model, site, number, fitted, rows[:5], None if before is None else before[:5], logits[:5], settings)[
        0
    ]
    worst = float(np.abs(again["error"] - ours["error"][:5]).max() / max(ours["error"].max(), 1e-30))
    draft.gate("G5", worst, "<=", thresholds.BATCH, "largest change of an image's error when few are coded together")
    codes = game_parts[1].double().numpy()
    draft.gate("G8", float((codes == 0).all((0, 1)).mean()), "<", 0.5, "share of concepts that are in no image")
    without(
        draft,
        {
            "G1": "concepts are read, and change nothing until they are taken out",
            "G2": "concepts leave something over: fvu says how much",
            "G3": "concepts are of this model's activations; random concepts are the control (G6)",
            "G4": "concepts are of the images of one class",
            "G7": "what other activations are made of is another factorisation",
        },
    )
    draft.gates.sort(key=lambda gate: gate.id)
    silent = ["what a concept means", "other classes", "other layers", "other models"]
    scope = scope_of(f"{fitted.n_concepts} concepts of {facts['target']}", draft.subject, draft.data, silent)
    return draft.done(scope=scope, forwards=3 * len(data.images))


@torch.no_grad()
def _kept(
    model: Any, site: str, number: int, fitted: Factorisation, rows: Any, before: Any, logits: Any, settings: dict
) -> tuple[dict[str, np.ndarray], tuple[Any, Any]]:
    """What the concepts keep of each image; and the tail with the codes."""
    tail, codes = tail_of(model, site, number, fitted, rows, before, **settings)
    bare = replace(tail, residual=None)
    parts = [bare.logits(codes[i : i + 64], torch.arange(i, min(i + 64, len(codes)))) for i in range(0, len(codes), 64)]
    out = torch.cat(parts).double().cpu()
    flat = rows.double().numpy()
    left = flat - fitted.decode(codes.flatten(0, 1).double().numpy()).reshape(flat.shape)
    spread = flat - flat.mean((0, 1))
    logits = logits.double().cpu()
    found = {
        "error": (left**2).sum((1, 2)),
        "variance": (spread**2).sum((1, 2)),
        "same": (out.argmax(1) == logits.argmax(1)).double().numpy(),
        "answer": (out[:, number] - logits[:, number]).abs().numpy(),
    }
    return found, (tail, codes)


def _random(fitted: Factorisation, seed: int) -> Factorisation:
    """As many random directions, of the same lengths, coded in the same way."""
    drawn = numpy_of(seed, "concepts", "random bank").normal(size=fitted.bank.shape)
    drawn = np.abs(drawn) if (fitted.bank >= 0).all() else drawn
    drawn *= np.linalg.norm(fitted.bank, axis=1, keepdims=True) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return replace(fitted, bank=drawn, codes=np.zeros((0, len(drawn))))


def _moved(game: Any, importances: np.ndarray, unsigned: bool, seed: int) -> np.ndarray:
    """How far the answer moves while concepts go by these importances; per image. Importances without a sign say that
    it moves, not which way."""
    path = concept_curves(game, np.tile(importances, (game.n_images, 1)), orders=1, sets=3, seed=seed).deletion
    change = path[:, :1] - path
    return (np.abs(change) if unsigned else change).mean(1)


def _importances(draft: Any, record: Concepts, parts: tuple[Any, Any], seed: int) -> None:
    from probes.concepts.game import game_of

    tail, codes = parts
    game = game_of(tail, codes[:MOST])
    stated = record.importances().mean(0)
    unsigned = record.facts["importance"] in UNSIGNED
    generator = numpy_of(seed, "concepts", "orders")
    drawn = [generator.permutation(len(stated)).astype(float) for _ in range(ORDERS)]
    own, *others = [_moved(game, order, unsigned, seed) for order in (stated, *drawn)]
    other = np.mean(others, 0)
    what = "|answer - whole answer|" if unsigned else "whole answer - answer"
    formula = f"mean of {what} while concepts go by stated importance; v1"
    draft.measure("deletion_change", own, formula=formula, direction="high", unit="answer")
    draft.measure("deletion_change", other, formula=formula, direction="high", unit="answer", control="random orders")
    found = stats.paired_difference(own, other, seed=seed)
    why = f"lower end of the paired 95 % interval: mean of {what} while concepts go as stated minus in random orders"
    draft.gate("G6b", float(found.low[0]), ">", 0.0, why)
    again = importance_in(game, "occlusion").mean(0)
    agreement = float(spearmanr(stated, again).statistic)
    draft.tables["importance"] = pl.DataFrame(
        {"concept": record.table["concept"], "stated": stated, "by taking it out here": again}
    )
    draft.given(
        "importance_agreement",
        agreement,
        n=game.n_images,
        formula="Spearman correlation over concepts of stated importances and of taking concepts out here; v1",
        direction="high",
        unit="correlation",
    )
    if unsigned:
        agreement = float(spearmanr(stated, np.abs(again)).statistic)  # these have no sign
    why = "rank correlation over concepts of the stated importances with what taking them out does on these images"
    draft.gate("G9", agreement, ">", 0.3, why)
