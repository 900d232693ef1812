"""Gradients of a dictionary at its active latents: to the values, to the weights, to the biases."""

from typing import overload

from mechvis.kernels.dispatch import choose
from mechvis.kernels.sparse_grad import naive
from mechvis.kernels.sparse_grad.naive import PerLatent, Rows, Values, Weight
from mechvis.kernels.support import Support

__all__ = ["column_sums", "entry_products", "segment_sum"]


def entry_products(a: Rows, weight: Weight, support: Support) -> Values:
    """Inner product of `a[row]` and `weight[latent]` for each entry.

    Two uses. With `a` the gradient of the reconstruction and `weight` the decoder: the gradients of the values. With
    `a` the input and `weight` the encoder: the pre-activations of the kept latents in full precision, after a selection
    in a cheaper type. Equals `(a @ weight.T)[rows, latents]` without the other products. No gradients.

    Args:
        a: one vector per row; any strides.
        weight: one vector per latent; any strides.
        support: where the entries are.

    Returns:
        the products in the order of the entries, float32 (float64 if either input is float64).

    Raises:
        ShapeMismatch: sizes that do not fit each other.
        OutOfRange: a latent that does not exist (looked for on a CPU only: elsewhere it would wait for the device).

    Example:
        >>> import torch
        >>> support = Support.from_mask(torch.tensor([[True, False, True], [False, True, False]]))
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> entry_products(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), weight, support).tolist()
        [1.0, 5.0, 4.0]
    """
    return _twin("entry_products", a, weight).entry_products(a, weight, support)


@overload
def segment_sum(values: Values, x: Rows, support: Support) -> Weight: ...


@overload
def segment_sum(
    values: Values, x: Rows, support: Support, *, against: Weight
) -> tuple[Weight, PerLatent, PerLatent]: ...


def segment_sum(
    values: Values, x: Rows, support: Support, *, against: Weight | None = None
) -> Weight | tuple[Weight, PerLatent, PerLatent]:
    """Weighted sum of rows for each latent: `out[latent] = sum over its entries of value * x[row]`.

    The gradient of a weight matrix: of the decoder from the values and the gradient of the reconstruction, of the
    encoder from the gradients of the pre-activations and the input. Equals `support.dense(values).T @ x`. Latents
    without entries are zero. The order of a sum is fixed and there are no atomics: two calls give the same bits. The
    plain twin goes through rows in ascending order, the Triton twin through several lanes of them. No gradients.

    Args:
        values: factor of each entry.
        x: one vector per row; any strides.
        support: where the entries are.
        against: a second matrix. The gradient `g` of a latent is projected on the sphere of its unit weight `w` as
            `g - (g.w) w`, whose squared norm is `|g|^2 - (g.w)^2`: with the two numbers, clipping needs no pass of its
            own over `[latent d]`.

    Returns:
        the sums, float32 (float64 if an input is float64); with `against` also `|out|^2` and `out . against` of each
        latent.

    Raises:
        ShapeMismatch: sizes that do not fit each other.

    Example:
        >>> import torch
        >>> support = Support.from_mask(torch.tensor([[True, False, True], [False, False, True]]))
        >>> segment_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), support).tolist()
        [[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]]
    """
    return _twin("segment_sum", values, x, against).segment_sum(values, x, support, against=against)


def column_sums(values: Values, support: Support) -> PerLatent:
    """Sum of the values of each latent: the gradient of the encoder's bias. In a fixed order, without atomics.

    Args:
        values: value of each entry.
        support: where the entries are.

    Returns:
        sums, float32 (float64 from float64); 0 for a latent without entries.

    Raises:
        ShapeMismatch: not one value per entry.

    Example:
        >>> import torch
        >>> support = Support.from_mask(torch.tensor([[True, False, True], [False, False, True]]))
        >>> column_sums(torch.tensor([1.0, 2.0, 3.0]), support).tolist()
        [1.0, 0.0, 5.0]
    """
    return _twin("column_sums", values).column_sums(values, support)


def _twin(operation: str, *tensors):
    if choose(operation, *tensors) == "naive":
        return naive
    from mechvis.kernels.sparse_grad import triton

    return triton
