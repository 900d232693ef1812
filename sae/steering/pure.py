"""Pure steering: a latent's direction on a blank image, and what the model then says it sees (methods.md 8).

1. Run a blank image; its own output is the baseline, which every change is measured from.
2. Add the direction at all tokens, at several strengths rho relative to the activation's length; one forward each.
3. Read the change: texts whose cosine rises (CLIP), classes whose logit rises, images nearest to the change.

Controls: random directions of equal length, and permuted features (latent i gets what latent i + shift does). Whether
an explanation holds is judged on real images: AUROC of the latent's strength for the quarter of images that fits the
explanation's first label best. The strength of steering is chosen on every second image, the quality that is reported
is that on the others. An explanation `counts` only if it exceeds what its own random direction and what another
latent's explanation reach.

Source of the procedure: 2603.22593 [code]; the paper lets a language model look, the three read-outs are ours [X].
Steering all tokens of a blank image is far from any image: for rho above 3 the effect is flat (the norms saturate).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.splicing.splice import splice_parts
from sae.steering.controls import random_like
from sae.steering.outputs import Blank, blank_pixels, steered_outputs
from sae.steering.quality import auroc
from sae.steering.readers import Reader, reader_of

RHO = (0.25, 0.5, 1.0, 2.0, 4.0)
WORDS = {
    "latent": "number of the latent",
    "rho": "length of what was added over the mean length of the activation: the strength with the best mean quality",
    "labels": "labels whose score rises most on the blank image",
    "change": "by how much the first of them rises: a cosine, or a centred logit",
    "quality": "AUROC of the latent's strength on real images, for the quarter that fits the first label best; 0.5: "
    "none; measured on images that did not choose rho",
    "random": "the same for the explanation that a random direction of equal length gives",
    "permuted": "the same for another latent's explanation",
    "counts": "the quality exceeds both controls",
    "nearest": "ids of the images whose embedding is nearest to the change",
    "fires": "images on which the latent is active",
}


class SteeringExplanations(Record):
    """What latents' directions make a model see on a blank image; see :func:`explain_by_steering`."""

    KIND = "steering_explanations"

    def figures(self) -> list:
        """Quality by strength, beside its controls."""
        from mechvis.plots.curve import Line, curve
        from mechvis.report.blocks import Figure

        by_rho = self.tables["strengths"]
        if by_rho["quality"].null_count() == by_rho.height:
            return []
        x = by_rho["rho"].to_numpy()
        lines = [
            Line(name=name, x=x, y=by_rho[column].cast(pl.Float64).fill_null(float("nan")).to_numpy())
            for column, name in (("quality", "latents"), ("random", "random directions"), ("permuted", "permuted"))
        ]
        figure = curve(lines, chosen=self.facts["rho"], x_label="rho", y_label="AUROC on real images")
        return [Figure(figure, "Mean quality of explanations by the strength of steering.")]


def explain_by_steering(
    model: Any,
    dictionary: Any,
    latents: Sequence[int],
    *,
    texts: Sequence[str] | None = None,
    images: Any = None,
    site: str | None = None,
    blank: Blank = "white",
    rho: Sequence[float] = RHO,
    top: int = 5,
    shift: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> SteeringExplanations:
    """Labels that latents' directions evoke on a blank image, with controls.

    Args:
        model: a `HookedCLIP` with `texts`, or a classifier.
        dictionary: of a site `[row token d]` of the vision tower.
        latents: which; at least two.
        texts: for CLIP: the vocabulary.
        images: real images, for the quality and for retrieval; None: neither is measured.
        site: what the dictionary writes, by default the name that it was trained on.
        blank: the image that is steered.
        rho: strengths to try; with images the one with the best mean quality is taken, else the middle one.
        top: labels per latent.
        shift: of the permuted control; by default half of the latents.
        batch_size: rows per forward.
        seed: of the random directions.
        progress: show a progress bar.

    Returns:
        SteeringExplanations: a row per latent; the table `strengths`; changes of all labels in `arrays["change"]`
        `[rho latent label]`.

    Raises:
        BadData: fewer than two latents, or a model without anything to read.
        OutOfRange: a latent or strength that cannot be.

    Example:
        >>> explain_by_steering(clip, dictionary, [3, 17], texts=words, images=images).table        # doctest: +SKIP
    """
    reader = reader_of(model, texts)
    part = splice_parts(reader.model, dictionary, site=site)
    latents, rho = _checked(latents, part.n_latents, rho, top)
    shift = max(1, len(latents) // 2) if shift is None else shift
    if not shift % len(latents):
        raise OutOfRange(f"shift={shift} maps every one of {len(latents)} latents to itself.")
    directions = part.directions().detach()[latents]
    drawn = random_like(directions, seed)
    pixels = blank_pixels(reader.model, blank, seed=seed)
    base = reader.model.run(pixels).output
    outputs = {}
    with track(2 * len(rho), "steering", " runs", show=progress) as bar:
        for name, vectors in (("latents", directions), ("random", drawn)):
            for strength in rho:
                out = steered_outputs(reader.model, pixels, part.site, vectors, strength, batch_size=batch_size)[:, 0]
                outputs[name, strength] = out
                bar.update(1)
    # As many rows of the baseline: another batch size would round otherwise, and nothing would not be nothing.
    before = reader.scores(base.expand(len(latents), -1))
    change = {key: reader.scores(out) - before for key, out in outputs.items()}
    real = None if images is None else _Real(reader, part, images, latents, batch_size)
    by_rho, judged = [], {}
    for strength in rho:
        own, other = change["latents", strength], change["random", strength]
        judged[strength] = _judged(real, own, other, shift, len(latents), slice(1, None, 2))
        choosing = _judged(real, own, other, shift, len(latents), slice(0, None, 2))
        means = {key: _mean(value) for key, value in choosing.items()}
        by_rho.append({"rho": strength, **means, "largest_change": float(own.max(1).values.mean())})
    scores = [row["quality"] for row in by_rho]
    known = [s for s in scores if s is not None]
    best = int(np.argmax([-1 if s is None else s for s in scores])) if known else len(rho) // 2
    chosen = rho[best]
    own, quality = change["latents", chosen], judged[chosen]
    nearest = None if real is None else real.nearest(outputs["latents", chosen] - base)
    table = pl.DataFrame(
        {
            "latent": latents,
            "labels": reader.explain(own, top),
            "change": own.max(1).values.double().tolist(),
            **{key: pl.Series(key, _nulls(value), dtype=pl.Float64) for key, value in quality.items()},
            "counts": pl.Series("counts", _counts(quality), dtype=pl.Boolean),
            "nearest": nearest if nearest is not None else [[] for _ in latents],
            "fires": pl.Series("fires", [None] * len(latents) if real is None else real.fires.tolist(), dtype=pl.Int64),
            "rho": [chosen] * len(latents),
        },
        schema_overrides={"nearest": pl.List(pl.String)},
    )
    return SteeringExplanations(
        title=f"What {len(latents)} latents of {part.site} evoke on a {blank} image",
        tables={"latents": table, "strengths": pl.DataFrame(by_rho, schema_overrides=_FLOATS)},
        arrays={"change": np.stack([change["latents", r].double().cpu().numpy() for r in rho])},
        facts={
            "labels": list(reader.labels), "read_by": reader.kind, "rho": chosen, "blank": blank, "shift": shift,
            "site": part.site, "n_images": 0 if images is None else len(images),
            "counting": sum(map(bool, _counts(quality))),
        },
        words=WORDS,
        caveats=_caveats(table, quality, real),
        provenance=provenance(model=reader.model, seed=seed, dictionary=part.identity),
    )  # fmt: skip


_FLOATS = {"quality": pl.Float64, "random": pl.Float64, "permuted": pl.Float64}


class _Real:
    """Real images: how they fit the labels, how strong each latent is on them, and where their embeddings lie."""

    def __init__(self, reader: Reader, part: Any, images: Any, latents: list[int], batch_size: int):
        outputs, strength = [], []
        for start in range(0, len(images), batch_size):
            run = reader.model.run(images[start : start + batch_size], capture=[part.reads])
            outputs.append(run.output)
            x = run.cache[part.reads]
            with torch.no_grad():
                codes = part.encode(x.flatten(2) if x.ndim == 4 else x)
            strength.append(codes[..., latents].amax(1))
        self.output = torch.cat(outputs)
        self.scores = reader.scores(self.output).double().cpu().numpy()
        self.strength = torch.cat(strength).double().cpu().numpy()
        self.fires = (self.strength > 0).sum(0)
        self.ids = list(getattr(images, "ids", None) or [f"image {i}" for i in range(len(images))])

    def quality(self, label: int, latent: int, part: slice) -> float:
        """AUROC of a latent's strength for the quarter of some images that fits a label best; NaN where it never
        varies."""
        fit = self.scores[part, label]
        strength = self.strength[part, latent]
        if np.ptp(strength) == 0 or len(fit) < 4:
            return float("nan")
        concept = np.zeros(len(fit), bool)
        concept[np.argsort(-fit, kind="stable")[: max(1, len(fit) // 4)]] = True
        return auroc(strength, concept)

    def nearest(self, change: Float[Tensor, "latent out"], k: int = 3) -> list[list[str]]:
        """Images whose output, minus the mean, points where the change does."""
        centred = torch.nn.functional.normalize(self.output - self.output.mean(0), dim=1)
        order = (torch.nn.functional.normalize(change, dim=1) @ centred.T).topk(min(k, len(self.ids)), dim=1)
        return [[self.ids[j] for j in row] for row in order.indices.tolist()]


def _judged(real: _Real | None, own: Tensor, other: Tensor, shift: int, n: int, part: slice) -> dict[str, np.ndarray]:
    if real is None:
        return {key: np.full(n, np.nan) for key in _FLOATS}
    best, random = own.argmax(1).tolist(), other.argmax(1).tolist()
    return {
        "quality": np.array([real.quality(best[i], i, part) for i in range(n)]),
        "random": np.array([real.quality(random[i], i, part) for i in range(n)]),
        "permuted": np.array([real.quality(best[(i + shift) % n], i, part) for i in range(n)]),
    }


def _counts(quality: dict[str, np.ndarray]) -> list[bool | None]:
    own, random, permuted = (quality[key] for key in _FLOATS)
    return [
        None if np.isnan(a) else bool(a > np.nan_to_num(b) and a > np.nan_to_num(c))
        for a, b, c in zip(own, random, permuted, strict=True)
    ]


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _nulls(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]


def _checked(latents: Sequence[int], n: int, rho: Sequence[float], top: int) -> tuple[list[int], list[float]]:
    chosen = [int(latent) for latent in latents]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise BadData(f"latents={chosen[:6]}: at least two different ones, or the permuted control has no other.")
    if bad := [latent for latent in chosen if not 0 <= latent < n]:
        raise OutOfRange(f"latent {bad[0]} does not exist: this dictionary has {n} (0 to {n - 1}).")
    strengths = [float(r) for r in rho]
    if not strengths or not all(np.isfinite(r) and r >= 0 for r in strengths) or top < 1:
        raise OutOfRange(f"rho={list(rho)}, top={top}: at least one strength, none below 0, and at least one label.")
    return chosen, strengths


def _caveats(table: pl.DataFrame, quality: dict[str, np.ndarray], real: _Real | None) -> tuple[str, ...]:
    said = ["A steered blank image is far from any image: what is evoked need not be what the latent does in one."]
    if real is None:
        said.append("Without images= no quality was measured and no explanation is known to hold.")
        return tuple(said)
    known = table.filter(pl.col("quality").is_not_null())
    held = int(known["counts"].sum())
    said.append(
        f"{held} of {known.height} explanations exceed both controls; of explanations that say nothing about a third "
        "would, by chance."
    )
    if known.height < table.height:
        said.append(f"{table.height - known.height} latents are equally strong on all images and cannot be judged.")
    return tuple(said)
