"""Adam with unit rows: the plain twin of the kernel.

    g = (grad - along * row) * factor
    m = m + (1 - b1) (g - m);  v = b2 v + (1 - b2) g²
    row = row - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps);  row = row / |row|

The first and the last step are left out where rows are free. A row of zeros stays one if nothing moves it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import OutOfRange, ShapeMismatch

Rows = Float[Tensor, "latent d"]
PerRow = Float[Tensor, " latent"]


@torch.no_grad()
def adam_rows(
    rows: Rows,
    grad: Rows,
    first: Rows,
    second: Rows,
    *,
    lr: float,
    count: int,
    betas: tuple[float, float],
    eps: float,
    along: PerRow | None,
    factor: Tensor | None,
) -> None:
    """See `mechvis.kernels.adam_rows.adam_rows`."""
    require_shapes(rows, grad, first, second, along, count)
    b1, b2 = betas
    if along is not None:
        grad = grad - along[:, None] * rows
    if factor is not None:
        grad = grad * factor
    first.lerp_(grad, 1 - b1)
    second.mul_(b2).addcmul_(grad, grad, value=1 - b2)
    scale = (second.sqrt() / (1 - b2**count) ** 0.5).add_(eps)
    rows.addcdiv_(first, scale, value=-lr / (1 - b1**count))
    if along is not None:
        norms = rows.norm(dim=1, keepdim=True)
        rows.div_(torch.where(norms > 0, norms, 1.0))


def require_shapes(rows: Tensor, grad: Tensor, first: Tensor, second: Tensor, along: Tensor | None, count: int) -> None:
    """Sizes fit each other.

    Raises:
        ShapeMismatch: they do not.
        OutOfRange: steps are counted from 1.
    """
    if rows.ndim != 2 or not rows.shape == grad.shape == first.shape == second.shape:
        raise ShapeMismatch(
            "adam_rows takes rows, grad and both moments as matrices [latent d] of one shape; got "
            f"{', '.join(str(list(t.shape)) for t in (rows, grad, first, second))}."
        )
    if along is not None and along.shape != rows.shape[:1]:
        raise ShapeMismatch(
            f"adam_rows takes along with a number for each of {len(rows)} rows; got {list(along.shape)}."
        )
    if not all(t.is_contiguous() for t in (rows, first, second)):
        raise ShapeMismatch("adam_rows writes rows and moments in place: give contiguous ones.")
    if count < 1:
        raise OutOfRange(f"adam_rows was told that this is step {count}; the first one is 1.")
