"""How parameters usually start.

1. Directions: rows of the encoder are `share` of a data point and the rest Gaussian, both of unit length before they
   are mixed (datapoint initialisation: Anthropic, October 2024; saev [code]), then of norm one.
2. The decoder starts as the encoder's transpose (for what is read); a transcoder's decoder starts at the least-squares
   answer of none: zero, so that it first writes the mean (sparsify [code]).
3. `b_dec` starts at the geometric median of what is written, which outliers move less than a mean; a transcoder's
   encoder bias takes the mean of what is read off.
4. The encoder of those that keep the k largest is then made shorter, by the one factor with which it writes some rows
   best (:func:`calibrate`). Directions that start at data points are alike, so k of them together write k times too
   much: on a scenes model the first FVU is 50 to 500 without it, and 1,000 steps later still a tenth higher.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae.ends import Ends

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

ENTRIES = 2**26
"""Pre-activations that are looked at to calibrate."""


def usual(architecture, ends: Ends, x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec (and W_skip) at the start.

    Args:
        architecture: its `n_latents`, `data_init`, `decoder`, `skip` are read.
        ends: what is read and written.
        x: rows that are read, normalised `[row d_in]`.
        y: as they have to be written `[row d_out]`.
        generator: on the CPU.
    """
    n = architecture.n_latents
    centre = geometric_median(y)
    read_centre = centre if not ends.transcodes else x.mean(0)
    W_enc = directions(x - read_centre, n, architecture.data_init, generator)
    found = {"W_enc": W_enc, "b_enc": x.new_zeros(n), "b_dec": centre}
    if not ends.transcodes:
        found["W_dec"] = W_enc.clone()
    else:
        found["b_enc"] = -(W_enc @ read_centre)
        drawn = torch.randn(n, ends.d_out, generator=generator, dtype=torch.float64).to(x)
        # Rows of norm one cannot be zero: they start in random directions. Free rows start at (almost) nothing.
        unit = torch.nn.functional.normalize(drawn, dim=1)
        found["W_dec"] = unit if architecture.decoder == "unit" else unit * 1e-3
    if architecture.skip:
        found["W_skip"] = x.new_zeros(ends.d_out, ends.d_in)
    return found


@torch.no_grad()
def calibrate(d: "Dictionary", x: Tensor, y: Tensor) -> float:
    """Scale the encoder so that ‖y - ŷ‖² is least over some rows; which latents are chosen does not change.

    (OpenAI rescales for unit vectors instead, and saw no clear benefit [code].)

    Args:
        d: at its start, without encoder bias; changed in place.
        x: rows that are read, normalised.
        y: as they have to be written.

    Returns:
        The factor; 1 where no positive one helps.
    """
    from sae.architecture import Step

    some = slice(0, min(4096, max(64, ENTRIES // d.n_latents)))
    written = d.architecture.loss(d, x[some], y[some], Step()).y_hat - d.b_dec
    size = written.double().square().sum()
    factor = float((written.double() * (y[some] - d.b_dec).double()).sum() / size) if size > 0 else 1.0
    if factor <= 0:
        return 1.0
    d.W_enc.mul_(factor)
    return factor


def directions(
    rows: Float[Tensor, "row d"], n: int, share: float, generator: torch.Generator
) -> Float[Tensor, "latent d"]:
    """Unit vectors between data points and random directions.

    Args:
        rows: data, centred.
        n: how many.
        share: of the data point, 0 to 1.
        generator: on the CPU.
    """
    picked = torch.randint(len(rows), (n,), generator=generator)
    drawn = torch.randn(n, rows.shape[1], generator=generator, dtype=torch.float64).to(rows)
    points = rows[picked.to(rows.device)]
    mixed = share * torch.nn.functional.normalize(points, dim=1) + (1 - share) * torch.nn.functional.normalize(
        drawn, dim=1
    )
    # A data point at the centre, with a share of one, has no direction.
    mixed = torch.where(mixed.norm(dim=1, keepdim=True) > 0, mixed, drawn)
    return torch.nn.functional.normalize(mixed, dim=1)


def geometric_median(rows: Float[Tensor, "row d"], steps: int = 100, tolerance: float = 1e-6) -> Float[Tensor, " d"]:
    """The point with the least mean distance to the rows (Weiszfeld's iteration), in float64."""
    points = rows[: 2**15].double()
    centre = points.mean(0)
    for _ in range(steps):
        weight = 1 / (points - centre).norm(dim=1).clamp_min(1e-12)
        following = (weight[:, None] * points).sum(0) / weight.sum()
        moved = (following - centre).norm()
        centre = following
        if moved <= tolerance * (1 + centre.norm()):
            break
    return centre.to(rows.dtype)
