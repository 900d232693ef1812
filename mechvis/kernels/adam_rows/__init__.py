"""One step of Adam for a matrix whose rows may have to stay on the sphere, in one visit to each row."""

from mechvis.kernels.adam_rows import naive
from mechvis.kernels.adam_rows.naive import PerRow, Rows
from mechvis.kernels.dispatch import choose

__all__ = ["adam_rows"]


def adam_rows(
    rows: Rows,
    grad: Rows,
    first: Rows,
    second: Rows,
    *,
    lr: float,
    count: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    along: PerRow | None = None,
    factor=None,
) -> None:
    """Adam on the rows of a matrix, in place: weights, moments; the gradient may be spoilt.

    With `along`, rows are unit vectors and stay so: the part of the gradient that points along a row is taken off
    (`grad - along * row`), and the row is made unit again after the step. `factor` is on the device, so a clipping
    factor needs no host.

    Args:
        rows: weights, contiguous.
        grad: their gradient.
        first, second: moments.
        lr: learning rate.
        count: which step this is, from 1.
        betas, eps: of Adam.
        along: `grad · row` of each row; None: rows are free.
        factor: gradients are multiplied with it, after they were projected; None: not.

    Raises:
        ShapeMismatch: sizes that do not fit each other.
        OutOfRange: count is below 1.

    Example:
        >>> import torch
        >>> rows, grad = torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 1.0]])
        >>> moments = torch.zeros(2, 1, 2)
        >>> adam_rows(rows, grad, *moments, lr=0.1, count=1, along=(rows * grad).sum(1))
        >>> [round(number, 3) for number in rows[0].tolist()]
        [0.995, -0.1]
    """
    twin = naive
    if choose("adam_rows", rows, grad, first, second) == "triton":
        from mechvis.kernels.adam_rows import triton as twin
    twin.adam_rows(rows, grad, first, second, lr=lr, count=count, betas=betas, eps=eps, along=along, factor=factor)
