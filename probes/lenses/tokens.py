"""Which tokens a lens is measured on: kinds of tokens, the same in all images or different ones by the object masks.

============  ========================================================================================================
kind          what is read
============  ========================================================================================================
`read`        the whole stream, by the model's own read-out (pooling included)
`cls`         the class token (the first prefix token), read alone
`registers`   the prefix tokens after the first, each read alone
`patches`     every patch, read alone
`object`      patches of which most pixels lie on the object (needs masks)
`background`  the other patches (needs masks)
============  ========================================================================================================

A measure of a kind with several tokens is their mean within the image: the image is the unit of every interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.axes import Residual
from mechvis.errors import BadData, unknown
from mechvis.patches import patch_groups

Kind = Literal["read", "cls", "registers", "patches", "object", "background"]
KINDS = ("read", "cls", "registers", "patches", "object", "background")


@dataclass(frozen=True, kw_only=True, eq=False)
class Kinds:
    """Kinds of tokens with their members."""

    names: tuple[str, ...]
    """The kinds, in the order asked for."""
    members: Bool[Tensor, "image kind token"]
    """Which tokens are read alone; one row where they are the same in all images. `read` has none."""

    def of(self, images: np.ndarray) -> Bool[Tensor, "image kind token"]:
        """Members in some of the images."""
        if len(self.members) == 1:
            return self.members.expand(len(images), -1, -1)
        return self.members[torch.from_numpy(images)]

    @property
    def used(self) -> Bool[Tensor, " token"]:
        """Tokens that some kind reads alone in some image."""
        return self.members.any(0).any(0)


def kinds_of(model: Any, images: Any, names: Kind | Sequence[Kind], parts: Any) -> Kinds:
    """Kinds of tokens by name.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet` or pixels.
        names: one kind or several.
        parts: the model's parts at the size of the images.

    Raises:
        UnknownName: no such kind.
        BadData: tokens that the model does not have, masks that the images do not have, or a kind twice.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or len(set(names)) != len(names):
        raise BadData(f"tokens={list(names)}: give each kind once, at least one of {', '.join(KINDS)}.")
    for name in names:
        if name not in KINDS:
            raise unknown("kind of tokens", name, KINDS)
    n_prefix, place = len(parts.prefix), torch.arange(parts.n_tokens)
    for name, least in (("cls", 1), ("registers", 2)):
        if name in names and n_prefix < least:
            raise BadData(
                f"tokens={name!r}: this model's tokens before the patches are {', '.join(parts.prefix) or 'none'}. "
                "Use 'read' or 'patches'."
            )
    nothing = torch.zeros(1, parts.n_tokens, dtype=torch.bool)
    rows = {
        "read": nothing,
        "cls": (place == 0)[None],
        "registers": ((place > 0) & (place < n_prefix))[None],
        "patches": (place >= n_prefix)[None],
    }
    if {"object", "background"} & set(names):
        found = patch_groups(model, images, "object")
        objects = found.members[:, found.names.index("object")]
        rows |= {"object": objects, "background": ~objects & rows["patches"]}
    each = [rows[name] for name in names]
    n = max(map(len, each))
    return Kinds(names=names, members=torch.stack([row.expand(n, -1) for row in each], dim=1))


def outliers(stream: Residual, n_prefix: int, ratio: float) -> Bool[Tensor, "row token"]:
    """Patches whose norm is more than `ratio` times the median norm of their image's patches (Darcet et al. 2024 **K**:
    such patches have given up what they showed and hold something of the whole image). Never a prefix token."""
    norms = stream[:, n_prefix:].norm(dim=-1)
    found = norms > ratio * norms.median(dim=1, keepdim=True).values
    return torch.nn.functional.pad(found, (n_prefix, 0), value=False)


def mean_over(
    values: Float[Tensor, "image token"], members: Bool[Tensor, "image kind token"]
) -> Float[Tensor, "kind image"]:
    """Mean over the members of each kind; NaN where it has none in an image."""
    weights = members.to(values)
    total = torch.einsum("ikt,it->ki", weights, values)
    count = weights.sum(-1).T
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)
