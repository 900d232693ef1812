"""The threshold that keeps the `count` largest values of a whole batch, without sorting the batch (BatchTopK).

Positive bfloat16 numbers, read as integers, ascend as the numbers do, and there are fewer than 2^15 of them. So

1. round the values to bfloat16 and count each pattern: one pass, 32,768 counters;
2. count from the top until `count` is reached: that pattern is the threshold, exactly, in bfloat16.

Histograms of several batches, devices or token types add up, which sorting does not: a threshold over all of them costs
one sum of 32,768 numbers. Values that are not positive are not counted (a latent that is not above zero is not active).
With ties the threshold keeps `above` values for certain and up to `equal` more: `above < count <= above + equal`. It is
a bfloat16 number: compare it with values that were rounded likewise.

Bussmann, Leask and Nanda 2024 (BatchTopK, 2412.06410) [paper] sort the whole batch. One CPU thread, [512, 8192]: 6 ms
against 52 for a flat `torch.topk` of 16,384; [2048, 12288]: 36 against 300 [run].
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch

BINS = 2**15
"""Patterns of bfloat16 numbers without a sign; bin 0 is zero, bin 32,640 infinity, those after it are NaN."""
NAN_PATTERNS = 127
"""Patterns that are NaN, for each sign; they are the last of the bins."""
AT_ONCE = 2**18
"""Values that are counted at once, so that their patterns stay in the cache."""


class Threshold(NamedTuple):
    """What keeps the `count` largest. Tensors without axes: nothing waits for the device."""

    value: Float[Tensor, ""]
    """The `count`-th largest value, rounded to bfloat16, as float32; 0 where there are not so many positive values."""
    above: Int[Tensor, ""]
    """Values above it, in bfloat16."""
    equal: Int[Tensor, ""]
    """Values equal to it, in bfloat16; 0 if the threshold is 0."""


@torch.no_grad()
def histogram(values: Float[Tensor, "..."]) -> Int[Tensor, " bin"]:
    """How often each positive bfloat16 number comes.

    Args:
        values: any shape and floating type; rounded to bfloat16 (to nearest even). NaN counts in its own bins, above
            infinity, so that it surfaces as the threshold.

    Returns:
        counts, int64 `[32768]`; bin 0 is left empty. Sums of histograms are histograms.

    Example:
        >>> counts = histogram(torch.tensor([[1.0, 2.0], [-1.0, 2.0]]))
        >>> int(counts.sum()), int(counts.max())
        (3, 2)
    """
    both = torch.zeros(2 * BINS, dtype=torch.long, device=values.device)
    for part in values.reshape(-1).split(AT_ONCE):
        # As signed integers, numbers with a sign bit are negative: the first half of the bins is theirs.
        pattern = part.to(torch.bfloat16).view(torch.int16).int().add_(BINS)
        if both.device.type == "cpu":
            both += torch.bincount(pattern, minlength=2 * BINS)
        else:  # bincount would wait for the device; whole numbers come out the same in any order
            both.scatter_add_(0, pattern.long(), torch.ones_like(pattern, dtype=torch.long))
    counts = both[BINS:].clone()
    counts[0] = 0
    counts[-1] += both[BINS - NAN_PATTERNS : BINS].sum()  # the processor's own NaN has a sign
    return counts


@torch.no_grad()
def threshold_of(counts: Int[Tensor, " bin"], count: int) -> Threshold:
    """The value that `count` values reach.

    Args:
        counts: of `histogram`, or a sum of such.
        count: how many values to keep.

    Raises:
        ShapeMismatch: not a histogram.
        BadData: counts that are not whole numbers.
        OutOfRange: count is below 1.

    Example:
        >>> found = threshold_of(histogram(torch.tensor([1.0, 2.0, 2.0, 3.0])), 2)
        >>> float(found.value), int(found.above), int(found.equal)
        (2.0, 1, 2)
    """
    if counts.shape != (BINS,):
        raise ShapeMismatch(f"threshold_of takes a histogram of {BINS} bins; got {list(counts.shape)}.")
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise BadData(f"threshold_of takes whole numbers of values per bin; got {counts.dtype}.")
    if count < 1:
        raise OutOfRange(f"threshold_of was asked for the {count} largest values; ask for at least one.")
    reached = counts.flip(0).cumsum(0).flip(0)  # values in this bin or above
    # The highest bin that `count` values reach; bin 0 stands for all that is not positive.
    last = (reached >= count).sum().sub(1).clamp(min=0)
    # `gather`, since an index of one number is read by the host.
    equal = counts.gather(0, last[None])[0] * (last > 0)
    above = reached.gather(0, last[None])[0] - equal
    return Threshold(value=last.to(torch.int16).view(torch.bfloat16).float(), above=above, equal=equal)
