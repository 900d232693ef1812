"""What the direction of every latent says to the head, or to texts: read-out projection (methods2.md 21.3 [A] [K]).

    s = J d        d what one unit of the latent adds to the stream, J the slope of the read-out at the mean last stream
                   of reference images, with the last norm's scale held

In a classifier s are logits, centred over classes (a constant says nothing). In CLIP J leads to the embedding, s is the
cosine with each text after the texts' mean has been taken off (texts share a large common part). What later blocks make
of the direction is left out: compare with `describe_latents`, which runs them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.attribution.direct import frozen_read_out, stream_directions
from sae.splicing.splice import splice_parts
from sae.steering.controls import random_like

WORDS = {
    "latent": "number of the latent",
    "up": "labels with the largest projection, largest first",
    "down": "labels with the smallest",
    "largest": "the largest projection: centred logits per unit of the latent, or a cosine",
    "above_random": "the largest projection over the 95 % quantile of that of random directions of equal length",
}


class ReadOutProjection(Record):
    """What each latent's direction says to the read-out; see :func:`read_out_projection`."""

    KIND = "read_out_projection"


def projected_directions(
    model: Any, directions: Float[Tensor, "direction d_model"], images: Any, *, batch_size: int = 64
) -> Float[Tensor, "direction out"]:
    """Change of the model's output for one unit of each direction in the last stream, at all tokens that are read.

    Args:
        model: a wrapped tower: logits come out, or the embedding.
        directions: in the residual stream.
        images: reference images, for the mean stream and the scale of its norm.
        batch_size: images per run.

    Raises:
        BadData: no image.
    """
    if len(images) == 0:
        raise BadData("a read-out is linearised at the mean of reference images, and there is none.")
    last, total = f"blocks.{len(model.parts.blocks) - 1}.hook_resid_post", 0
    for start in range(0, len(images), batch_size):
        run = model.run(images[start : start + batch_size], capture=[last], stop_when_captured=True)
        total = total + run.cache[last].sum(0, keepdim=True, dtype=torch.float64)
    mean = (total / len(images)).to(model.dtype)
    read = frozen_read_out(model, mean)
    with torch.enable_grad():
        slope = torch.autograd.functional.jacobian(lambda x: read(x)[0], mean)[:, 0].detach()
    # Tokens that are not read have no slope.
    return directions.detach().to(slope) @ slope.sum(1).T


def read_out_projection(
    model: Any,
    dictionary: Any,
    images: Any,
    *,
    texts: Sequence[str] | None = None,
    site: str | None = None,
    top: int = 10,
    n_random: int = 200,
    seed: int = 0,
) -> ReadOutProjection:
    """Labels that each latent's direction raises and lowers in the read-out.

    Args:
        model: a classifier, or a `HookedCLIP` with `texts`.
        dictionary: of a site that is added to the stream.
        images: reference images.
        texts: for CLIP: the pool of texts.
        site: what the dictionary writes, by default the name that it was trained on.
        top: labels per latent and side.
        n_random: random directions, of the mean length of the latents', to compare with.
        seed: of these.

    Returns:
        ReadOutProjection: a row per latent; all projections in `arrays["scores"]` `[latent label]`.

    Raises:
        BadData: no head, no texts, or fewer than two labels.
        RefusedMethod: a site whose vectors are not added to the stream.
        OutOfRange: `top` below 1.

    Example:
        >>> read_out_projection(clip, dictionary, images, texts=words).table["up"][17]              # doctest: +SKIP
    """
    if top < 1 or n_random < 20:
        raise OutOfRange(f"top={top}, n_random={n_random}: at least 1 label, at least 20 random directions.")
    tower, labels, anchors = _target(model, texts)
    part = splice_parts(tower, dictionary, site=site)
    directions = stream_directions(tower, part).detach()
    usual = directions.norm(dim=1).mean() * torch.nn.functional.normalize(directions[:1], dim=1)
    drawn = random_like(usual, seed, per=n_random)
    out = projected_directions(tower, torch.cat([directions, drawn]), images).double()
    if anchors is not None:
        out = torch.nn.functional.normalize(out, dim=1) @ anchors.T.double()
    scores = out - out.mean(1, keepdim=True)
    scores, random = scores[: len(directions)].cpu().numpy(), scores[len(directions) :].cpu().numpy()
    limit = float(np.quantile(random.max(1), 0.95))
    top = min(top, len(labels))
    order = np.argsort(-scores, axis=1, kind="stable")
    table = pl.DataFrame(
        {
            "latent": np.arange(len(scores)),
            "up": [[labels[j] for j in row[:top]] for row in order],
            "down": [[labels[j] for j in row[::-1][:top]] for row in order],
            "largest": scores.max(1),
            "above_random": scores.max(1) / limit,
        }
    )
    return ReadOutProjection(
        title=f"What {len(scores)} latents of {part.site} say to the read-out",
        tables={"latents": table},
        arrays={"scores": scores, "random_largest": random.max(1)},
        facts={"labels": list(labels), "random_95": limit, "n_images": len(images), "site": part.site},
        words=WORDS,
        caveats=("Only the direct path to the read-out, with its norm frozen: later blocks take no part.",),
        provenance=provenance(model=tower, seed=seed, dictionary=part.identity),
    )


def _target(model: Any, texts: Sequence[str] | None) -> tuple[Any, tuple[str, ...], Tensor | None]:
    """The tower, its labels, and centred text embeddings for CLIP."""
    if hasattr(model, "encode_text"):
        if texts is None or len(texts) < 2 or len(set(texts)) < len(texts):
            raise BadData("CLIP needs texts=, at least two different ones.")
        anchors = model.encode_text(list(texts))
        return model.vision, tuple(texts), torch.nn.functional.normalize(anchors - anchors.mean(0), dim=1)
    if texts is not None:
        raise BadData("texts= are for a CLIP model (mechvis.load of one): this one has classes.")
    if model.parts.head is None or len(model.parts.class_names) < 2:
        raise BadData("this model has no head with two named classes. For CLIP pass the whole model and texts=.")
    return model, model.parts.class_names, None
