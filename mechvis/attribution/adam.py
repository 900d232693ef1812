"""One step of Adam on plain tensors (Kingma and Ba 2015): value by value, so that images of a batch stay apart."""

from torch import Tensor


def adam(value: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], step: int, rate: float) -> Tensor:
    """The value after one step down the gradient; moments are changed in place.

    Args:
        value: any shape.
        gradient: of what is minimised.
        moments: first and second, zeros at first.
        step: counts from 1.
        rate: step size.

    Example:
        >>> import torch
        >>> adam(torch.zeros(1), torch.ones(1), (torch.zeros(1), torch.zeros(1)), 1, 0.5).round(decimals=4).tolist()
        [-0.5]
    """
    moments[0].mul_(0.9).add_(gradient, alpha=0.1)
    moments[1].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    first, second = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.999**step)
    return value.detach() - rate * first / (second.sqrt() + 1e-8)
