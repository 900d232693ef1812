"""Operators: what stands in the place of a patch that is taken away.

===============  ========================================================  ================================
operator         in the place of the patch                                 masks
===============  ========================================================  ================================
`Zero`           0 after normalisation                                     0 to 1
`Mean`           mean colour of the image (or given pixels)                0 to 1
`Blur`           the image blurred by a Gaussian                           0 to 1
`OtherImage`     the same place of another image, of a given pool          0 to 1
`NoisyLinear`    weighted mean of its neighbours plus noise (ROAD)         0 or 1
`MeanToken`      mean embedding of that position over given images         0 to 1 (after the embedding)
`TokenDrop`      nothing: no token reads it                                0 or 1 (after the embedding)
===============  ========================================================  ================================

None of them is right: each leaves the distribution of natural images in its own way. So measures are given for
several, and a card says how far they agree. Sources: faithfulness.md 2 [M]; ROAD: Rong et al. 2022 (neighbour weights
1/6 and 1/12), as given in faithfulness.md 2.1 [K], here for patches and not for pixels.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.keyed import generator_of


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What stands in the place of a patch that is taken away: a value."""

    NAME: ClassVar[str] = ""
    """Name in tables and files."""
    VERSION: ClassVar[int] = 1
    """Rises when the numbers change."""
    AT: ClassVar[Literal["pixels", "embedding", "tokens"]] = "pixels"
    """Where it acts: on the image, on the stream before block 0, or on which tokens there are."""
    SOFT: ClassVar[bool] = True
    """Masks between 0 and 1 are allowed."""

    @property
    def title(self) -> str:
        """Name and settings in one word."""
        settings = ", ".join(f"{name}={value}" for name, value in asdict(self).items())
        return f"{self.NAME}({settings})" if settings else self.NAME


class Fill(Operator, ABC):
    """An operator of pixels: it makes the image that is seen where patches are missing."""

    @abstractmethod
    def background(
        self, pixels: Float[Tensor, "image channel height width"], ids: Int[Tensor, " image"], seed: int
    ) -> Float[Tensor, "image channel height width"]:
        """The image of which nothing is kept."""


@dataclass(frozen=True, kw_only=True)
class Zero(Fill):
    """Zero after normalisation: the colour that preprocessing calls mean."""

    NAME = "zero"

    def background(self, pixels: Tensor, ids: Tensor, seed: int) -> Tensor:
        return torch.zeros_like(pixels)


@dataclass(frozen=True, kw_only=True)
class Mean(Fill):
    """The mean colour of the image itself: no other image is asked, so a batch changes nothing."""

    NAME = "mean"

    def background(self, pixels: Tensor, ids: Tensor, seed: int) -> Tensor:
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels)


@dataclass(frozen=True, kw_only=True)
class Blur(Fill):
    """The image itself, blurred."""

    NAME = "blur"
    sigma: float = 0.15
    """Standard deviation of the Gaussian, as a share of the shorter side."""

    def background(self, pixels: Tensor, ids: Tensor, seed: int) -> Tensor:
        if not self.sigma > 0:
            raise OutOfRange(f"sigma={self.sigma}: a blur needs a positive width.")
        sigma = self.sigma * min(pixels.shape[2:])
        reach = min(int(3 * sigma) + 1, *(side - 1 for side in pixels.shape[2:]))
        line = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
        kernel = torch.exp(-0.5 * (line / sigma) ** 2)
        kernel = (kernel / kernel.sum()).expand(pixels.shape[1], 1, -1)
        across = F.conv2d(F.pad(pixels, (reach, reach, 0, 0), "reflect"), kernel[:, :, None], groups=pixels.shape[1])
        return F.conv2d(F.pad(across, (0, 0, reach, reach), "reflect"), kernel[..., None], groups=pixels.shape[1])


@dataclass(frozen=True, kw_only=True)
class OtherImage(Fill):
    """The same place of another image, from a pool that is part of the operator: never of the batch at hand."""

    NAME = "other"
    pool: Any = None
    """Pixels `[image channel height width]` to take from."""

    def background(self, pixels: Tensor, ids: Tensor, seed: int) -> Tensor:
        if self.pool is None:
            raise BadData("OtherImage needs pixels to take from: OtherImage(pool=other_pixels).")
        if self.pool.shape[1:] != pixels.shape[1:]:
            raise BadData(f"the pool has images {list(self.pool.shape[1:])}, these are {list(pixels.shape[1:])}.")
        pool = self.pool.to(pixels)
        rows = []
        for image, number in zip(pixels, ids.tolist(), strict=True):
            order = torch.randperm(len(pool), generator=generator_of(seed, number, "other image")).tolist()
            different = next((place for place in order if not torch.equal(pool[place], image)), None)
            if different is None:
                raise BadData("the pool of OtherImage holds no image but the explained one.")
            rows.append(pool[different])
        return torch.stack(rows)

    @property
    def title(self) -> str:
        """Name and size of the pool."""
        return f"other(pool={0 if self.pool is None else len(self.pool)})"


@dataclass(frozen=True, kw_only=True)
class NoisyLinear(Operator):
    """Every missing patch is the weighted mean of its neighbours plus noise: `x_i = sum_j w_ij x_j + N(0, noise^2)`,
    direct neighbours 1/6, diagonal ones 1/12, solved for all missing patches of an image together.

    ROAD solves for pixels; on the patch grid the unknown is the mean colour of a patch.
    """

    NAME = "noisy_linear"
    SOFT = False
    noise: float = 0.1
    """Standard deviation of the noise, in units of the preprocessed pixels."""


@dataclass(frozen=True, kw_only=True)
class MeanToken(Operator):
    """The mean embedding of that position over reference images: position kept, content gone."""

    NAME = "mean_token"
    AT = "embedding"
    reference: Any = None
    """Pixels `[image channel height width]` to average over. Required: the mean of the batch at hand would make an
    image's scores depend on its company."""

    @property
    def title(self) -> str:
        """Name and size of the reference."""
        return f"mean_token(reference={0 if self.reference is None else len(self.reference)})"


@dataclass(frozen=True, kw_only=True)
class TokenDrop(Operator):
    """Nothing is put there: the token leaves the sequence, and no other token reads it."""

    NAME = "token_drop"
    AT = "tokens"
    SOFT = False


OPERATORS: dict[str, type[Operator]] = {
    kind.NAME: kind for kind in (Zero, Mean, Blur, OtherImage, NoisyLinear, MeanToken, TokenDrop)
}
"""By name."""


def operator(given: str | Operator) -> Operator:
    """An operator from its name (with default settings), or itself.

    Raises:
        UnknownName: no such operator.

    Example:
        >>> operator("blur").sigma
        0.15
    """
    if isinstance(given, Operator):
        return given
    if given not in OPERATORS:
        raise unknown("removal operator", given, OPERATORS)
    return OPERATORS[given]()


def patch_means(pixels: Float[Tensor, "row channel height width"], patch: tuple[int, int]) -> Float[Tensor, "..."]:
    """Mean colour of each patch `[row channel down across]`; pixels beyond the last whole patch count to none."""
    down, across = (side // size for side, size in zip(pixels.shape[2:], patch, strict=True))
    used = pixels[:, :, : down * patch[0], : across * patch[1]]
    return rearrange(used, "r c (d h) (a w) -> r c d a (h w)", d=down, a=across).mean(-1)
