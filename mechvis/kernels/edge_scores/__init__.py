"""The contraction at the heart of edge attribution patching, without the outputs of single heads in `d_model`."""

from mechvis.kernels.dispatch import choose
from mechvis.kernels.edge_scores import naive
from mechvis.kernels.edge_scores.naive import Change, Gradient, Scores, Weight

__all__ = ["edge_scores"]


def edge_scores(change: Change, weight: Weight, gradient: Gradient) -> Scores:
    """First-order effect of every edge from a head to a reader, per image.

    A source head whose z changes writes `change @ W_O` more into the stream; a reader answers with the gradient of the
    metric with respect to what it reads there (for a query, key or value input: the gradient at q, k or v, through W_Q,
    W_K or W_V and the LayerNorm's Jacobian). Their inner product over tokens and `d_model` is the edge's score, in
    units of the metric (edge attribution patching, Syed et al. 2023, equation 2). Gradients flow to all three; the
    Triton twin takes them through the plain one.

    Args:
        change: difference of z between two runs, per source head; any strides.
        weight: W_O of each source head.
        gradient: gradient at each reader's input of the stream; any strides.

    Returns:
        scores per image, float32 (float64 from float64); sum or average over images as the study needs.

    Raises:
        ShapeMismatch: arrays that do not fit each other.

    Example:
        >>> import torch
        >>> edge_scores(torch.ones(1, 5, 2, 4), torch.ones(2, 4, 8), torch.ones(1, 5, 3, 8)).tolist()
        [[[160.0, 160.0, 160.0], [160.0, 160.0, 160.0]]]
    """
    if choose("edge_scores", change, weight, gradient) == "naive":
        return naive.edge_scores(change, weight, gradient)
    from mechvis.kernels.edge_scores import triton

    return triton.edge_scores(change, weight, gradient)
