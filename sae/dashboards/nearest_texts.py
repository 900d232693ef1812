"""Texts of a bank that are nearest to a latent, in the joint space of a CLIP model; two readings, with chance beside.

* decoder: the latent's direction through the read-out (its slope at the mean stream of some images, the last norm's
  scale held: `sae.attribution.projected_directions`), then the cosine with each text.
* images: mean embedding of the latent's top images, minus the mean of all images, then the cosine with each text.

Texts share a large common part, and so do images (the modality gap), so both means are taken off. The best of many
texts always has some cosine: the 95 % quantile of the best for random directions, and for random images, says how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, RefusedMethod
from sae.dashboards.codes import Reading

CONTROLS = 200
"""Random directions, and random sets of images."""
REFERENCE = 128
"""Images at whose mean stream the read-out is linearised."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """A CLIP model with texts; made by :func:`texts_of`."""

    clip: Any
    """The `HookedCLIP`."""
    texts: tuple[str, ...]
    """The descriptions."""
    anchors: Float[Tensor, "text d_embed"] = field(repr=False)
    """Their embeddings, mean taken off, unit length, float64."""
    same_tower: bool
    """Is its vision tower the model that the dictionary reads?"""

    def embed(self, pixels: Tensor, output: Tensor) -> Float[Tensor, "image d_embed"]:
        """Unit embeddings of images: the output of the run where the tower is the same."""
        own = output if self.same_tower else self.clip.encode_image(pixels)
        return torch.nn.functional.normalize(own.double(), dim=1)


def texts_of(model: Any, tower: Any, texts: Any, clip: Any) -> Texts | None:
    """The texts to look among, or None.

    Args:
        model: as it was given: a CLIP model is its own.
        tower: that is read.
        texts: a list, a `TextBank`, or the name of one.
        clip: a CLIP model, where `model` is none.

    Raises:
        BadData: texts without CLIP, CLIP given without texts, or fewer than two different texts.
    """
    clip = model if clip is None and hasattr(model, "encode_text") else clip
    if texts is None:
        if clip is not None and clip is not model:
            raise BadData("clip= is for nearest texts; give texts= too: a list, a bank, or its name ('general').")
        return None
    if clip is None or not hasattr(clip, "encode_text"):
        raise BadData("texts= need a CLIP model: pass the whole one as model, or clip=.")
    if isinstance(texts, str):
        from mechvis.data.text_bank import text_bank

        texts = text_bank(texts)
    named = tuple(texts.texts if hasattr(texts, "texts") else texts)
    if len(named) < 2 or len(set(named)) < len(named):
        raise BadData(
            f"nearest texts need at least two different ones, got {len(named)} ({len(set(named))} different)."
        )
    anchors = clip.encode_text(list(named)).detach().double()
    anchors = torch.nn.functional.normalize(anchors - anchors.mean(0), dim=1)
    return Texts(clip=clip, texts=named, anchors=anchors, same_tower=tower is clip.vision)


def nearest(
    known: Texts,
    reading: Reading,
    latents: Int[np.ndarray, " latent"],
    reference: Tensor,
    embeddings: Float[np.ndarray, "picture d_embed"],
    mean: Float[np.ndarray, " d_embed"],
    top: Sequence[Int[np.ndarray, "_"]],
    n_texts: int,
    seed: int,
) -> tuple[pl.DataFrame, dict[str, float], list[str]]:
    """The nearest texts of latents by both readings.

    Args:
        known: texts.
        reading: model and dictionary.
        latents: which.
        reference: pixels of some images, at whose mean stream the read-out is linearised.
        embeddings: of the example images.
        mean: embedding of all images.
        top: positions of each latent's top images in `embeddings`.
        n_texts: texts of each kind.
        seed: of what chance gives.

    Returns:
        Rows `latent kind rank text cosine above_chance`; what chance gives, by name; sentences.
    """
    parts, chance = [], {}
    told = ["Texts are relative to their bank: the best of poor ones is listed too; see above_chance."]
    found = by_direction(known, reading, latents, reference, seed)
    if isinstance(found, str):
        told.append(found)
    else:
        chance["text_decoder_chance"] = found[1]
        parts.append(listed("decoder", *found, known.texts, latents, n_texts))
    scores, limit = by_images(known, embeddings, mean, top, seed)
    chance["text_images_chance"] = limit
    parts.append(listed("images", scores, limit, known.texts, latents, n_texts))
    return pl.concat(parts).sort("latent", "kind", "rank", maintain_order=True), chance, told


def by_direction(
    known: Texts, reading: Reading, latents: Int[np.ndarray, " latent"], reference: Tensor, seed: int
) -> tuple[Float[np.ndarray, "latent text"], float] | str:
    """Cosine of each latent's direction with each text, and what the best of random directions reaches.

    Args:
        known: texts.
        reading: model and dictionary.
        latents: which.
        reference: pixels of some images.
        seed: of the random directions.

    Returns:
        Scores and the 95 % quantile; or, in a sentence, why there are none.
    """
    from sae.attribution.direct import stream_directions
    from sae.attribution.projection import projected_directions

    if not known.same_tower:
        return "No texts by decoder direction: the dictionary reads another model than the CLIP model of the texts."
    ends, tower = reading.dictionary.ends, reading.model
    written = list(ends.writes)[-1]
    site = reading.places[written].site if written in reading.places else tower.graph.resolve(written)
    rows = ends.split(reading.dictionary.directions.detach())[written][torch.as_tensor(latents)]
    try:
        directions = stream_directions(tower, SimpleNamespace(site=site, directions=lambda: rows))
    except RefusedMethod as error:
        return f"No texts by decoder direction: {error}"
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(CONTROLS, directions.shape[1], generator=generator).to(directions)
    out = projected_directions(tower, torch.cat([directions, random]), reference).double()
    scores = torch.nn.functional.normalize(out, dim=1) @ known.anchors.T.to(out)
    limit = float(scores[len(directions) :].amax(1).quantile(0.95))
    return scores[: len(directions)].cpu().numpy(), limit


def by_images(
    known: Texts,
    embeddings: Float[np.ndarray, "picture d_embed"],
    mean: Float[np.ndarray, " d_embed"],
    top: Sequence[Int[np.ndarray, "_"]],
    seed: int,
) -> tuple[Float[np.ndarray, "latent text"], float]:
    """Cosine of the mean top image of each latent with each text, and what the best of random images reaches.

    Args:
        known: texts.
        embeddings: of the example images.
        mean: embedding of all images.
        top: positions in `embeddings`, per latent; no scores (NaN) for a latent without any.
        seed: of the random sets of images.
    """
    anchors = known.anchors.cpu().numpy()

    def scores(chosen: np.ndarray) -> np.ndarray:
        if not len(chosen):
            return np.full(len(anchors), np.nan)
        middle = embeddings[chosen].mean(0) - mean
        return anchors @ middle / max(float(np.linalg.norm(middle)), 1e-12)

    rng = np.random.default_rng(seed)
    size = min(max((len(chosen) for chosen in top), default=1) or 1, len(embeddings))
    random = [scores(rng.choice(len(embeddings), size, replace=False)).max() for _ in range(CONTROLS)]
    return np.stack([scores(chosen) for chosen in top]), float(np.quantile(random, 0.95))


def listed(
    kind: str,
    scores: Float[np.ndarray, "latent text"],
    limit: float,
    texts: Sequence[str],
    number: np.ndarray,
    top: int,
) -> pl.DataFrame:
    """The nearest texts of each latent as rows `latent kind rank text cosine above_chance`."""
    top = min(top, len(texts))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    known = np.isfinite(scores[:, 0])
    latent, rank = np.repeat(number[known], top), np.tile(np.arange(top), int(known.sum()))
    cosine = np.take_along_axis(scores, order, 1)[known].ravel()
    return pl.DataFrame(
        {
            "latent": latent,
            "kind": [kind] * len(latent),
            "rank": rank,
            "text": [texts[j].encode("utf-8", "replace").decode() for j in order[known].ravel()],
            "cosine": cosine,
            "above_chance": cosine > limit,
        },
        schema_overrides={"kind": pl.String, "text": pl.String},
    )
