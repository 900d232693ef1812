"""How far to believe a picture: against natural images, against other units, against random directions.

A picture can be found for every direction of a network, meaningful or not. Pictures are painted through crops, so the
best view of each (the whole, or one of 32 crops of a fifth to a half of the side) is judged, by four numbers:

* **activation** of that view, beside the 99.9 % percentile of natural images (and the share of them below it);
* **rank among peers**: on how many other units of the site (classes, latents, heads) the picture is further out, in
  standard deviations of natural images. 0 is specific;
* **random directions** of equal norm at the same site (for `direction`): how many the picture drives as far out;
* **synthetic only**: it activates more than three times the natural maximum, so the direction may be none that natural
  images use.

Source: methods2.md 19.3 [X].
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.keyed import generator_of
from mechvis.provenance import provenance
from mechvis.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block
    from mechvis.visualise.objectives import Objective

_VIEWS = 32
"""Crops among which the best view is looked for."""
_ROWS = 64
"""Images that go through the model together."""


class Visualisation(Record):
    """Pictures of one objective. The first table has a row per seed; `pictures` `[picture height width channel]` (0 to
    1), `transparency` `[picture height width]` and `curves` `[picture step]` are arrays."""

    KIND = "visualisation"

    @property
    def pictures(self) -> np.ndarray:
        """`[picture height width channel]`, 0 to 1."""
        return self.arrays["pictures"]

    def plot(self) -> "Figure":
        """The pictures, with their numbers: see :func:`mechvis.plots.pictures.pictures`."""
        from mechvis.plots.pictures import pictures

        notes = [
            f"seed {row['seed']}: {row['activation']:.3g}\nnatural 99.9 %: {row['natural_999']:.3g}"
            for row in self.table.iter_rows(named=True)
        ]
        return pictures(self.pictures, self.arrays["transparency"], notes, title=self.title)

    def figures(self) -> "list[Block]":
        """The pictures."""
        from mechvis.report.blocks import Figure

        return [Figure(self.plot(), "Pictures, faint where the objective did not look.")]


def judged(
    model: Any,
    objective: "Objective",
    painted: list[Any],
    natural: Any,
    pixels: Tensor,
    seeds: list[int],
    scale: Any,
    settings: dict[str, Any],
    controls: int,
) -> Visualisation:
    """The record of some pictures."""
    seen = [_views(one.image, pixels.shape[2], seed) for one, seed in zip(painted, seeds, strict=True)]
    scores = [_measured(model, objective, scale.seen(views), controls)[0] for views in seen]
    whole = [float(score[0]) for score in scores]
    best = torch.stack([views[int(score.argmax())] for views, score in zip(seen, scores, strict=True)])
    own, of_peers, of_controls = _measured(model, objective, scale.seen(best), controls)
    base, base_peers, base_controls = _measured(model, objective, pixels, controls)
    percentile, top = float(base.quantile(0.999)), float(base.max())
    table = pl.DataFrame(
        {
            "seed": seeds,
            "start": [float(one.curve[0]) for one in painted],
            "end": [float(one.curve[-max(1, len(one.curve) // 10) :].mean()) for one in painted],
            "activation": own.tolist(),
            "whole": whole,
            "natural_999": [percentile] * len(seeds),
            "natural_below": [float((base < value).double().mean()) for value in own],
            "peers_ahead": _ahead(of_peers, base_peers, objective.index, own, base),
            "controls_ahead": _ahead(of_controls, base_controls, None, own, base),
            "synthetic_only": [bool(value > 3 * top and top > 0) for value in own],
        }
    )
    beaten = int((own > percentile).sum())
    caveats = [
        f"{beaten} of {len(seeds)} pictures activate more than the 99.9 % percentile of {len(pixels)} natural images.",
        f"That is the best of {_VIEWS + 1} views of a picture against natural images as they are.",
        "Each picture is a local optimum; compare the seeds before you name what they show.",
    ]
    if len(pixels) < 1000:
        caveats.append(f"With {len(pixels)} natural images the 99.9 % percentile is close to their maximum.")
    if table["synthetic_only"].any():
        caveats.append("A picture activates over three times the natural maximum: possibly no natural direction.")
    return Visualisation(
        title=f"Pictures of: {objective.title}",
        tables={"pictures": table},
        arrays={
            "pictures": torch.stack([one.image for one in painted]).movedim(1, -1).float().cpu().numpy(),
            "transparency": torch.stack([one.transparency for one in painted]).float().cpu().numpy(),
            "curves": torch.stack([one.curve for one in painted]).numpy(),
        },
        facts={
            "objective": objective.title,
            "n_natural": len(pixels),
            "natural_mean": float(base.mean()),
            "natural_max": top,
            "peers": 0 if of_peers is None else of_peers.shape[1] - 1,
            "controls": 0 if of_controls is None else of_controls.shape[1],
            **settings,
        },
        words=_WORDS,
        caveats=tuple(caveats),
        provenance=provenance(model, natural if isinstance(natural, ImageSet) else None, seeds[0]),
    )


def _views(picture: Tensor, side: int, seed: int) -> Tensor:
    """The whole picture, and crops of it, at the model's size."""
    from mechvis.visualise.maco import cropped

    whole = F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True)
    generator = generator_of(seed, 0, "views of a picture")
    sizes = [cropped(picture, side, _VIEWS // 4, share, generator) for share in (0.2, 0.3, 0.4, 0.5)]
    return torch.cat([whole, *sizes])


def _measured(model: Any, objective: "Objective", pixels: Tensor, controls: int) -> tuple[Tensor, Any, Any]:
    """The objective of whole images, that of all peers, and that of random directions."""
    parts = model._for_size(tuple(pixels.shape[2:]))[0]
    own, peers, others = [], [], []
    drawn = None
    if objective.vector is not None and objective.states is not None:
        width = len(objective.vector)
        drawn = torch.randn(width, controls, generator=generator_of(0, 0, "control directions"))
        drawn = F.normalize(drawn, dim=0) * objective.vector.norm().float().cpu()
    for some in pixels.split(_ROWS):
        run = model.run(some, capture=list(objective.sites))
        own.append(objective.read(run, parts))
        if objective.among is not None:
            peers.append(objective.among(run, parts))
        if drawn is not None:
            states = objective.states(run, parts)
            vectors = drawn.to(states)
            along = states @ vectors
            cosine = along / (states.norm(dim=-1, keepdim=True) * vectors.norm(dim=0)).clamp(min=1e-12)
            others.append((along * cosine).mean(1))
    joined = [torch.cat(found).double().cpu() if found else None for found in (own, peers, others)]
    return joined[0], joined[1], joined[2]


def _ahead(found: Any, base: Any, index: int | None, own: Tensor, own_base: Tensor) -> list[int | None]:
    """How many others a picture drives further out than its own target, in standard deviations of natural images."""
    if found is None:
        return [None] * len(own)
    far = (found - base.mean(0)) / base.std(0).clamp(min=1e-12)
    reached = (own - own_base.mean()) / own_base.std().clamp(min=1e-12)
    ahead = far > reached[:, None]
    if index is not None:
        ahead[:, index] = False
    return ahead.sum(1).tolist()


_WORDS = {
    "seed": "of the phase, crops and noise",
    "start": "objective at the first step, mean over crops",
    "end": "objective over the last tenth of the steps, mean over crops",
    "activation": "objective of the picture's best view: the whole, or one of 32 crops",
    "whole": "objective of the whole picture",
    "natural_999": "99.9 % percentile of the objective over natural images",
    "natural_below": "share of natural images with less than the best view",
    "peers_ahead": "other units (classes, heads, latents) that this view drives further out than its own",
    "controls_ahead": "random directions of equal norm that this view drives further out than its own",
    "synthetic_only": "more than three times the natural maximum",
}
