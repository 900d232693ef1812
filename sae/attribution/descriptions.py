"""When does a latent fire, and what does it do? Labels of both sides, and do they agree (methods2.md 21.3 [A] [X])?

Labels are texts (CLIP) or classes. On reference images:

* input side: for every label the AUC of its score for images on which the latent fires, against the others (where it
  fires nearly everywhere or nowhere: for the half on which it is strongest);
* output side: the latent is raised by alpha (its 99 % quantile where it is active, times some factors) at the tokens
  where it fires, or at all patches of images where it does not; the mean change of each label's score, as a z-score
  against random directions of equal length at the same places. Labels with |z| > 3 are said to be changed;
* agreement: Spearman correlation of the two over the labels. Low: the latent detects something else than it causes.

How good are the labels? On every second image, which made none: the AUC of the input labels again, and of the output
labels whether steering this latent raises them more than steering two others (chance 1/3).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from mechvis import edits
from mechvis.errors import BadData, OutOfRange
from mechvis.models.parts import SpliceParts
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap
from sae.splicing.splice import splice_parts
from sae.steering.controls import random_like
from sae.steering.readers import Reader, reader_of

WORDS = {
    "latent": "number of the latent",
    "input_labels": "labels that fit the images on which it fires, best first",
    "input_auc": "AUC of the first of them on images that did not choose it; 0.5: none",
    "output_labels": "labels that rise most when the latent is raised",
    "output_z": "z-score of the first of them against random directions of equal length",
    "changed": "labels with |z| > 3",
    "lowered_labels": "labels that fall most",
    "agreement": "Spearman correlation of input AUC and output change over the labels",
    "picked": "of this and two other latents, is this the one whose steering raises its output labels most?",
    "fires": "share of images on which it fires",
    "alpha": "what the latent is raised by: its 99 % quantile where it is active",
}


class LatentDescriptions(Record):
    """Labels of when latents fire and of what they do; see :func:`describe_latents`."""

    KIND = "latent_descriptions"


def describe_latents(
    model: Any,
    dictionary: Any,
    latents: Sequence[int],
    images: Any,
    *,
    texts: Sequence[str] | None = None,
    site: str | None = None,
    factors: Sequence[float] = (1.0, 2.0, 4.0),
    n_random: int = 64,
    top: int = 5,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> LatentDescriptions:
    """Input and output labels of latents, their agreement and their quality.

    Args:
        model: a `HookedCLIP` with `texts`, or a classifier.
        dictionary: of a site `[row token d]` of the vision tower.
        latents: which; at least three for `picked`.
        images: reference images (at least 8); the even ones make the labels, the odd ones judge them.
        texts: for CLIP: the vocabulary.
        site: what the dictionary writes, by default the name that it was trained on.
        factors: on alpha; the change is their mean, each divided by its factor.
        n_random: random directions per latent.
        top: labels per side.
        batch_size: images per forward.
        seed: of random directions and of the two others.
        progress: show a progress bar.

    Raises:
        BadData: too few images, or nothing to read.
        OutOfRange: a latent or number that cannot be.

    Example:
        >>> describe_latents(clip, dictionary, [3, 17, 40], images, texts=words).table             # doctest: +SKIP
    """
    reader = reader_of(model, texts)
    part = splice_parts(reader.model, dictionary, site=site)
    chosen = _checked(latents, part.n_latents, len(images), factors, n_random, top)
    made, judging = (_Half(reader, part, images, chosen, start, batch_size) for start in (0, 1))
    auc, change, z, alphas = [], [], [], []
    with track(len(chosen), "describing latents", " latents", show=progress) as bar:
        for place, latent in enumerate(chosen):
            alpha = made.alpha(place)
            alphas.append(alpha)
            auc.append(made.auc(place))
            direction = part.directions().detach()[latent]
            steps = [made.change(place, direction, alpha * factor) / factor for factor in factors]
            change.append(np.mean(steps, axis=0))
            drawn = random_like(direction[None], seed + latent, per=n_random)
            random = np.stack([made.change(place, one, alpha) for one in drawn])
            z.append((steps[0] - random.mean(0)) / np.maximum(random.std(0, ddof=1), 1e-12))
            bar.update(1)
    auc, change, z = np.stack(auc), np.stack(change), np.stack(z)
    picked = _picked(judging, part, chosen, change, alphas, top, seed)
    rows = []
    for place, latent in enumerate(chosen):
        label = int(np.nanargmax(auc[place])) if not np.isnan(auc[place]).all() else None
        best = np.argsort(-change[place], kind="stable")
        rows.append(
            {
                "latent": latent,
                "input_labels": [] if label is None else _named(reader, np.argsort(-auc[place], kind="stable"), top),
                "input_auc": None if label is None else _number(judging.auc(place)[label]),
                "output_labels": _named(reader, best, top),
                "output_z": float(z[place, best[0]]),
                "changed": int((np.abs(z[place]) > 3).sum()),
                "lowered_labels": _named(reader, best[::-1], top),
                "agreement": _agreement(auc[place], change[place]),
                "picked": picked[place],
                "fires": float(made.fires[place].mean()),
                "alpha": alphas[place],
            }
        )
    table = pl.DataFrame(rows, infer_schema_length=None, schema_overrides=_TYPES)
    return LatentDescriptions(
        title=f"What {len(chosen)} latents of {part.site} detect and do",
        tables={"latents": table},
        arrays={"input_auc": auc, "output_change": change, "output_z": z},
        facts={"labels": list(reader.labels), "read_by": reader.kind, "site": part.site, "n_images": len(images),
               **_summary(table)},
        words=WORDS,
        caveats=_caveats(table),
        provenance=provenance(model=reader.model, seed=seed, dictionary=part.identity),
    )  # fmt: skip


_TYPES = {"input_auc": pl.Float64, "agreement": pl.Float64, "picked": pl.Boolean} | {
    name: pl.List(pl.String) for name in ("input_labels", "output_labels", "lowered_labels")
}


class _Half:
    """Every second image: scores of its labels, where latents are active, and what steering changes."""

    def __init__(self, reader: Reader, part: SpliceParts, images: Any, latents: list[int], start: int, size: int):
        self.reader, self.part, self.size = reader, part, size
        self.pixels = reader.model.inputs(images[np.arange(start, len(images), 2)])
        codes, self.clean = [], []
        for some in self.pixels.split(size):
            run = reader.model.run(some, capture=[part.reads])
            x = run.cache[part.reads]
            with torch.no_grad():
                codes.append(part.encode(x.flatten(2) if x.ndim == 4 else x)[..., latents])
            self.clean.append(reader.scores(run.output))
        self.codes = torch.cat(codes).movedim(-1, 0)
        self.scores = torch.cat(self.clean).double().cpu().numpy()
        self.fires = (self.codes > 0).any(2).cpu().numpy()

    def alpha(self, place: int) -> float:
        """The 99 % quantile of a latent where it is active; of all latents together where it never is."""
        active = self.codes[place][self.codes[place] > 0]
        active = active if len(active) else self.codes[self.codes > 0]
        return float(active.double().quantile(0.99)) if 0 < len(active) <= 2**24 else 1.0

    def auc(self, place: int) -> Float[np.ndarray, " label"]:
        """How well each label's score tells images on which the latent fires; NaN where all are alike."""
        strength, fires = self.codes[place].amax(1).double().cpu().numpy(), self.fires[place]
        if not 0.05 <= fires.mean() <= 0.95:
            fires = strength > np.median(strength)
        n, m = int(fires.sum()), int((~fires).sum())
        if not n or not m:
            return np.full(self.scores.shape[1], np.nan)
        ranks = rankdata(self.scores, axis=0)
        return (ranks[fires].sum(0) - n * (n + 1) / 2) / (n * m)

    def where(self, place: int) -> Bool[Tensor, "image token"]:
        """Where a latent is raised: where it fires, or at all patches."""
        active = self.codes[place] > 0
        patches = torch.arange(active.shape[1], device=active.device) >= len(self.reader.model.parts.prefix)
        return torch.where(active.any(1, keepdim=True), active, patches)

    def change(self, place: int, direction: Float[Tensor, " d"], alpha: float) -> Float[np.ndarray, " label"]:
        """Mean change of each label's score by steering."""
        site, where, total = self.part.site, self.where(place), 0
        axes = self.reader.model.graph[site].axes
        for i, some in enumerate(self.pixels.split(self.size)):
            vector = alpha * direction
            if "head" in axes:
                vector = vector.unflatten(0, (self.reader.model.graph[site].sizes[axes.index("head")], -1))
            edit = edits.add(site, vector, tokens=where[i * self.size : i * self.size + len(some)])
            after = self.reader.scores(self.reader.model.run(some, edits=[edit]).output)
            total = total + (after - self.clean[i]).double().sum(0)
        return (total / len(self.pixels)).cpu().numpy()


def _picked(
    half: _Half, part: SpliceParts, latents: list[int], change: np.ndarray, alphas: list[float], top: int, seed: int
) -> list[bool | None]:
    """Is each latent the one of three whose steering raises its output labels most, on images that made no label?"""
    if len(latents) < 3:
        return [None] * len(latents)
    directions = part.directions().detach()
    new = np.stack([half.change(i, directions[latent], alphas[i]) for i, latent in enumerate(latents)])
    rng, found = np.random.default_rng(seed), []
    for place in range(len(latents)):
        labels = np.argsort(-change[place], kind="stable")[: min(top, max(1, change.shape[1] // 2))]
        others = rng.permutation([i for i in range(len(latents)) if i != place])[:2]
        raised = [new[i][labels].mean() for i in (place, *others)]
        found.append(bool(np.argmax(raised) == 0))
    return found


def _named(reader: Reader, order: np.ndarray, top: int) -> list[str]:
    return [reader.labels[i] for i in order[:top]]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _agreement(auc: np.ndarray, change: np.ndarray) -> float | None:
    if np.isnan(auc).any() or np.ptp(auc) == 0 or np.ptp(change) == 0 or len(auc) < 3:
        return None
    return float(spearmanr(auc, change).statistic)


def _summary(table: pl.DataFrame) -> dict[str, float]:
    facts: dict[str, float] = {}
    for name in ("input_auc", "agreement", "picked"):
        known = table[name].drop_nulls().cast(pl.Float64).to_numpy()
        if len(known) > 1:
            one = bootstrap(known)
            facts |= {name: float(one.effect[0]), f"{name}_low": float(one.low[0]), f"{name}_high": float(one.high[0])}
    return facts


def _caveats(table: pl.DataFrame) -> tuple[str, ...]:
    said = ["Labels are relative to the vocabulary: the best of poor ones is a label too."]
    known = table["agreement"].drop_nulls()
    low = int((known < 0.1).sum())
    if low:
        said.append(f"{low} of {len(known)} latents do something else than they detect (agreement below 0.1).")
    if table["picked"].null_count() == table.height:
        said.append("With fewer than three latents the output labels were not judged.")
    return tuple(said)


def _checked(
    latents: Sequence[int], n: int, n_images: int, factors: Sequence[float], n_random: int, top: int
) -> list[int]:
    chosen = [int(latent) for latent in latents]
    if not chosen or len(set(chosen)) < len(chosen):
        raise BadData(f"latents={chosen[:6]}: at least one, each once.")
    if bad := [latent for latent in chosen if not 0 <= latent < n]:
        raise OutOfRange(f"latent {bad[0]} does not exist: this dictionary has {n} (0 to {n - 1}).")
    if n_images < 8:
        raise BadData(f"{n_images} images: half of them make labels and half judge them, so give at least 8.")
    if not factors or any(not f > 0 for f in factors) or n_random < 8 or top < 1:
        raise OutOfRange(
            f"factors={list(factors)}, n_random={n_random}, top={top}: factors above 0, at least 8 random directions, "
            "at least 1 label."
        )
    return chosen
