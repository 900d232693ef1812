"""Random directions to compare a latent's direction with."""

import torch
from jaxtyping import Float
from torch import Tensor


def random_like(
    directions: Float[Tensor, "direction d"], seed: int, *, per: int = 1
) -> Float[Tensor, "direction_and_draw d"]:
    """Random directions of the lengths of given ones, `per` draws for each, one after the other.

    The stream of numbers is its own: what a caller drew with the same seed (planted directions, say) does not come
    again.

    Args:
        directions: whose lengths.
        seed: of the draws.
        per: draws for each.

    Example:
        >>> random_like(torch.tensor([[3.0, 4.0]]), seed=0).norm().round()
        tensor(5.)
    """
    generator = torch.Generator().manual_seed(int(seed) * 1_000_003 + 8_021)
    drawn = torch.randn(len(directions) * per, directions.shape[1], generator=generator, dtype=torch.float64)
    lengths = directions.detach().norm(dim=1).repeat_interleave(per)[:, None]
    return (drawn / drawn.norm(dim=1, keepdim=True)).to(directions) * lengths
