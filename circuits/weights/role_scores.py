"""What makes a head's pattern a role: one number per image and head, and beside it what it would be for another reason.

All are shares between 0 and 1 of the attention of patch queries (their mean), except where said.

==================  ===================================================  =============================================
role                score                                                control
==================  ===================================================  =============================================
`cls`               attention to the CLS token                           1 / tokens (uniform attention)
`register`          attention to all registers                           registers / tokens
`self`              attention of a patch to itself                       the popularity control (below)
`patch above` ...   attention to the patch above, below, left, right,    the popularity control
                    over queries that have one
`local`             attention to the up to eight neighbours              the popularity control
`diffuse`           exp(entropy) / tokens: effective share of keys       a fixed share, one half by default (**X**)
`object`            attention of the read tokens to object patches       other images' masks
`background`        attention of the read tokens to all other patches    other images' masks
==================  ===================================================  =============================================

*Popularity control* (**X**): the same with every query's row replaced by the mean row of the image's patch queries. It
keeps which keys are popular (a sink, the middle of the image) and forgets who asks, so a head that looks at the centre
is not local because centres are near.

*Other images' masks* (**X**): mass that falls on the mean of all other images' masks, corrected for the difference of
the two masks' areas (what uniform attention of the same patch mass would gain by it). A head with a centre prior, on
data whose objects are in the middle, has its score above the area's share and not above this control. Where all images
have one mask, object and place cannot be told apart and the difference is zero.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.axes import Pattern

ROLES = (
    "cls",
    "register",
    "self",
    "patch above",
    "patch below",
    "patch left",
    "patch right",
    "local",
    "diffuse",
    "object",
    "background",
)
"""All roles; of two that fit equally well the first counts (a head that looks left is local as well)."""

PerHeadImage = Float[Tensor, "image head"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Where the tokens of a tower are."""

    n_tokens: int
    """All tokens."""
    n_prefix: int
    """Tokens before the patches."""
    cls: int | None
    """The CLS token, if there is one."""
    registers: tuple[int, ...]
    """The registers."""
    read: tuple[int, ...]
    """Tokens whose queries count as reading the image for the output: those of the read-out, or all patches."""
    near: Float[Tensor, "patch patch"] = field(repr=False)
    """1 for the up to eight neighbours of a patch, 0 elsewhere and for itself."""
    distance: Float[Tensor, "patch patch"] = field(repr=False)
    """Distance between the middles of two patches, in patches."""
    shifts: dict[str, tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]] = field(repr=False)
    """By direction, queries and keys that lie next to each other that way."""


def places(parts: Any, device: torch.device | None = None) -> Places:
    """Where the tokens of a tower are (`parts` at the images' size)."""
    down, across = parts.grid
    n_prefix = len(parts.prefix)
    cell = torch.arange(down * across, device=device)
    row, column = cell // across, cell % across
    rows, columns = row[:, None] - row, column[:, None] - column
    near = torch.maximum(rows.abs(), columns.abs()) == 1
    shifts = {}
    for name, (dy, dx) in {"above": (-1, 0), "below": (1, 0), "left": (0, -1), "right": (0, 1)}.items():
        y, x = row + dy, column + dx
        inside = (y >= 0) & (y < down) & (x >= 0) & (x < across)
        shifts[f"patch {name}"] = (cell[inside], (y * across + x)[inside])
    # A read-out of all tokens (a mean, attention pooling) reads the patches.
    reads = parts.reads if isinstance(parts.reads, tuple) else tuple(range(n_prefix, parts.n_tokens))
    return Places(
        n_tokens=parts.n_tokens,
        n_prefix=n_prefix,
        cls=parts.prefix.index("cls") if "cls" in parts.prefix else None,
        registers=tuple(i for i, name in enumerate(parts.prefix) if name.startswith("register")),
        read=reads,
        near=near.float(),
        distance=(rows.square() + columns.square()).float().sqrt(),
        shifts=shifts,
    )


def role_scores(pattern: Pattern, at: Places, *, diffuse: float = 0.5) -> dict[str, tuple[PerHeadImage, PerHeadImage]]:
    """Score and control of every role that needs no masks and that this tower can have.

    Example:
        >>> found = role_scores(pattern, places(model.parts))                                      # doctest: +SKIP
        >>> score, control = found["local"]                                                        # doctest: +SKIP
    """
    rows = pattern[:, :, at.n_prefix :]
    patches = rows[..., at.n_prefix :]
    popular = patches.mean(2)  # [image head key]
    n = patches.shape[-1]
    like = popular[..., 0]
    found = {}
    if at.cls is not None:
        found["cls"] = rows[..., at.cls].mean(2), torch.full_like(like, 1 / at.n_tokens)
    if at.registers:
        share = len(at.registers) / at.n_tokens
        found["register"] = rows[..., list(at.registers)].sum(-1).mean(2), torch.full_like(like, share)
    found["self"] = patches.diagonal(dim1=-2, dim2=-1).mean(-1), popular.mean(-1)
    for name, (query, key) in at.shifts.items():
        if len(query):  # a grid of one row has no patch above
            found[name] = patches[:, :, query, key].mean(-1), popular[..., key].mean(-1)
    near = at.near.to(patches)
    found["local"] = (
        einsum(patches, near, "i h q k, q k -> i h") / n,
        einsum(popular, near.mean(0), "i h k, k -> i h"),
    )
    used = torch.special.entr(rows).sum(-1).exp().mean(2) / at.n_tokens
    found["diffuse"] = used, torch.full_like(used, diffuse)
    return found


def mean_distance(pattern: Pattern, at: Places) -> tuple[PerHeadImage, PerHeadImage]:
    """Mean distance of attention among patches, in patches, and its popularity control; NaN where patches get less than
    a millionth of the attention. Raghu et al. 2021 (**K**)."""
    patches = pattern[:, :, at.n_prefix :, at.n_prefix :]
    distance, popular = at.distance.to(patches), patches.mean(2)
    mass = popular.sum(-1)
    mass = torch.where(mass > 1e-6, mass, torch.nan)
    seen = einsum(patches, distance, "i h q k, q k -> i h") / patches.shape[-1]
    return seen / mass, einsum(popular, distance.mean(0), "i h k, k -> i h") / mass


def object_scores(
    pattern: Pattern,
    queries: list[int],
    own: Bool[Tensor, "image patch"],
    others: Float[Tensor, "image patch"],
    n_prefix: int,
) -> dict[str, tuple[PerHeadImage, PerHeadImage]]:
    """Score and control of `object` and `background`.

    Args:
        pattern: of some images.
        queries: tokens whose attention counts.
        own: object patches of each image.
        others: mean over all other images of their object patches; NaN for an image that does not count.
        n_prefix: tokens before the patches.
    """
    row = pattern[:, :, queries].mean(2)[..., n_prefix:]
    own, others = own.to(row), others.to(row)
    mass = row.sum(-1)
    score = einsum(row, own, "i h k, i k -> i h")
    control = einsum(row, others, "i h k, i k -> i h") + mass * (own.mean(-1) - others.mean(-1))[:, None]
    score = torch.where(torch.isnan(control), control, score)
    return {"object": (score, control), "background": (mass - score, mass - control)}


def other_masks(own: Bool[Tensor, "image patch"]) -> Float[Tensor, "image patch"]:
    """For every image the mean of all other images' masks; NaN for images that are all object or have none, which do
    not count as others either."""
    some = own.any(-1) & ~own.all(-1)
    total = own[some].double().sum(0)
    others = (total - own.double()) / max(int(some.sum()) - 1, 1)
    enough = some & (some.sum() > 1)
    return torch.where(enough[:, None], others, torch.nan)
