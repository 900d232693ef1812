"""Two repairs of one shortcut side by side: unstable concepts cured in the head, or the heads removed that carry it.

They differ in what they need and in what they touch. DISC needs images with and without each suspected concept, and
changes the last layer only. Removing heads needs to know which (a study of heads says so), changes no weight that is
learned, and takes away whatever else these heads carry. Both are judged on images that neither saw, by group:

before | retrained | DISC | random concepts | heads removed | random heads removed (as many per layer, mean over draws)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from mechvis import edits
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange
from mechvis.means import means
from mechvis.provenance import provenance
from probes.features import collect
from probes.repair.disc import Repair, disc, head_of
from probes.repair.scoreboard import against, scoreboard
from probes.repair.vectors import concept_vectors

Heads = Sequence[tuple[int, int]]


def compare_repairs(
    model: Any,
    train: ImageSet,
    test: ImageSet,
    truth: Mapping[str, np.ndarray],
    heads: Heads,
    *,
    bank: ImageSet | None = None,
    mode: Literal["zero", "mean_positional"] = "zero",
    c: float = 0.01,
    draws: int = 5,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    **more: Any,
) -> Repair:
    """DISC and removal of heads on the same model, judged on the same other images.

    Args:
        model: a wrapped classifier with a linear head.
        train: labelled images; DISC learns the head again on them, and they give the means of `mean_positional`.
        test: other labelled images, with groups.
        truth: concept -> bool, whether an image of `bank` shows it.
        heads: (layer, head) that are removed, e.g. the context heads that a CIGMA study recommends.
        bank: images of the concepts; default: the training images.
        mode: what takes a removed head's place.
        c: of the support vector machines.
        draws: random concepts and random sets of heads.
        batch_size: images per forward.
        seed: of clusters and draws.
        progress: show progress bars.
        more: settings of :func:`probes.repair.disc`.

    Returns:
        Repair: see the module for the rows.

    Raises:
        SplitOverlap: test images among the training images or the bank.
        BadData: no head to remove, or the test images have no groups.
        OutOfRange: a head that the model does not have.
        UnsupportedModel: the model's head is not linear.

    Example:
        >>> truth = {b: train.columns["background"] == b for b in BACKGROUNDS}                 # doctest: +SKIP
        >>> compare_repairs(model, train, test, truth, [(0, 0), (0, 2), (0, 3)])               # doctest: +SKIP
    """
    if test.groups is None:
        raise BadData("the test images have no groups, and a shortcut shows in groups only. Give images with groups.")
    chosen = _checked_heads(model, heads)
    refuse_overlap(train, test, what="training and test images")
    if bank is not None:
        refuse_overlap(bank, test, what="concept bank and test images")
    site = "hook_pooled"
    seen = {
        name: collect(model, images, site, progress=progress)
        for name, images in (("train", train), ("test", test), *([("bank", bank)] if bank is not None else []))
    }
    vectors = concept_vectors(seen.get("bank", seen["train"])[site], truth, c=c)
    found = disc(seen["train"], seen["test"], vectors, head=head_of(model), draws=draws, seed=seed, **more)
    reference = means(model, train, "blocks.*.attn.hook_z") if mode == "mean_positional" else None

    def right(removed: Heads) -> np.ndarray:
        hits = []
        for start in range(0, len(test), batch_size):
            part = test[start : start + batch_size]
            logits = model.run(part, edits=_removal(removed, mode, reference)).logits
            hits.append((logits.argmax(1).cpu() == part.label_tensor).double())
        return torch.cat(hits).numpy()

    random = np.mean([right(some) for some in _random_heads(model, chosen, draws, seed)], axis=0)
    names = ", ".join(f"L{layer}H{head}" for layer, head in chosen)
    hits = {key.removeprefix("hits/"): own for key, own in found.arrays.items() if key.startswith("hits/")}
    hits |= {f"{names} removed": right(chosen), f"{len(chosen)} random heads removed": random}
    return Repair(
        title="Concept-level repair beside the removal of heads",
        tables={
            "accuracy": scoreboard(hits, test.groups, seed=seed),
            "instability": found.tables["instability"],
            "against": against(hits, test.groups, of="DISC", seed=seed),
            "vectors": _table(vectors),
        },
        arrays={**found.arrays, **{f"hits/{what}": own for what, own in hits.items()}},
        facts={**found.facts, "removed": [list(head) for head in chosen], "mode": mode},
        words={
            **found.words,
            f"{names} removed": f"these heads replaced ({mode}), the model otherwise as it was",
            f"{len(chosen)} random heads removed": f"as many other heads, {draws} draws, mean accuracy",
        },
        caveats=(
            *found.caveats,
            "The two repairs need different knowledge: concept labels of images, or which heads carry the context.",
        ),
        provenance=provenance(model=model, images=test, seed=seed, train={"name": train.name, "n": len(train)}),
    )


def _removal(heads: Heads, mode: str, reference: Any) -> list:
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    sites = {f"blocks.{layer}.attn.hook_z": own for layer, own in by_layer.items()}
    if mode == "zero":
        return [edits.zero(site, heads=own) for site, own in sites.items()]
    return [edits.mean_positional(site, reference, heads=own) for site, own in sites.items()]


def _checked_heads(model: Any, heads: Heads) -> list[tuple[int, int]]:
    chosen = sorted({(int(layer), int(head)) for layer, head in heads})
    if not chosen:
        raise BadData("heads=[] removes nothing; give (layer, head) pairs.")
    for layer, head in chosen:
        if not (0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads):
            raise OutOfRange(
                f"L{layer}H{head} does not exist: {model.cfg.n_layers} layers of {model.cfg.n_heads} heads."
            )
    return chosen


def _random_heads(model: Any, chosen: Heads, draws: int, seed: int) -> list[list[tuple[int, int]]]:
    others = [
        (layer, head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
        if (layer, head) not in set(chosen)
    ]
    if len(others) < len(chosen):
        raise BadData(f"{len(chosen)} heads are removed and {len(others)} others remain: no random set of equal size.")
    generator = np.random.default_rng(seed)
    return [[others[i] for i in generator.choice(len(others), len(chosen), replace=False)] for _ in range(draws)]


def _table(vectors: Any) -> pl.DataFrame:
    return pl.DataFrame({"concept": vectors.names, "margin": vectors.margins, "accuracy": vectors.accuracy})
