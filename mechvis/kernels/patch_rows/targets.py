"""What both twins of `patch_rows` ask of a list of targets."""

import torch
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch

_AXES = ("row", "token", "group")


def require_shapes(x: Tensor, targets: dict[str, Tensor], table: Tensor | None, source: Tensor | None) -> None:
    """Sizes fit each other; costs nothing on a GPU.

    Raises:
        ShapeMismatch: they do not.
    """
    if x.ndim != 4:
        raise ShapeMismatch(f"patch_rows edits [row token group width]; the activation is {list(x.shape)}.")
    lengths = {name: list(values.shape) for name, values in targets.items()}
    if source is not None:
        lengths["source"] = list(source.shape)
    if any(length != [len(targets["row"])] for length in lengths.values()):
        raise ShapeMismatch(f"patch_rows needs one entry per target in each of row, token, ...; got {lengths}.")
    if table is not None and (table.ndim != 2 or table.shape[1] != x.shape[3]):
        raise ShapeMismatch(f"patch_rows: the table is {list(table.shape)}, wanted [entry, {x.shape[3]}].")


def flat(shape: torch.Size, row: Tensor, token: Tensor, group: Tensor) -> Tensor:
    """Targets as one int64 number each, in the order of a contiguous activation."""
    return (row.long() * shape[1] + token) * shape[2] + group


def require_distinct(
    shape: torch.Size,
    row: Tensor,
    token: Tensor,
    group: Tensor,
    source: Tensor | None = None,
    entries: int | None = None,
) -> bool:
    """Targets and sources exist, and no target comes twice. Makes a GPU wait once for the answer.

    Returns:
        whether the targets ascend, row by row and token by token.

    Raises:
        OutOfRange: an index that the activation or the table does not have.
        BadData: a target that is there twice, so that the result would depend on chance.
    """
    # A source below zero stands for none.
    limits = {axis: (index, 0, size) for axis, index, size in zip(_AXES, (row, token, group), shape, strict=False)}
    if source is not None and entries is not None:
        limits["source"] = (source, None, entries)
    keys = flat(shape, row, token, group)
    ends = [end.long() for index, _, _ in limits.values() for end in torch.aminmax(index)]
    *ends, ascends = torch.stack([*ends, (keys[1:] > keys[:-1]).all().long()]).tolist()
    for (_, least, size), low, high in zip(limits.values(), ends[::2], ends[1::2], strict=True):
        if (least is not None and low < least) or high >= size:
            raise OutOfRange(_outside(limits))
    if not ascends:
        values, counts = keys.unique(return_counts=True)
        if len(values) < len(keys):
            where = torch.unravel_index(values[counts > 1][0], tuple(shape[:3]))
            at = dict(zip(_AXES, map(int, where), strict=True))
            raise BadData(
                f"patch_rows: {int((counts > 1).sum())} of {len(values)} targets come more than once, the first at "
                f"{at}. Which edit wins would be left to chance: apply one after the other in two calls."
            )
    return bool(ascends)


def _outside(limits: dict[str, tuple[Tensor, int | None, int]]) -> str:
    """The first target that does not exist, in words."""
    outside = torch.zeros_like(limits["row"][0], dtype=torch.bool)
    for index, least, size in limits.values():
        outside |= index >= size
        if least is not None:
            outside |= index < least
    first = int(outside.nonzero()[0, 0])
    at = {axis: int(index[first]) for axis, (index, _, _) in limits.items()}
    sizes = {axis: size for axis, (_, _, size) in limits.items()}
    return f"patch_rows: target {first} is {at}; the sizes are {sizes}, and indices count from 0."


def require_own_memory(x: Tensor) -> None:
    """In place needs one place in memory per entry.

    Raises:
        BadData: the activation is an expanded view.
    """
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        raise BadData(
            f"patch_rows_ cannot write into an expanded tensor ({list(x.shape)}, strides {list(x.stride())}): several "
            "entries share one place in memory. Give it x.contiguous(), or use patch_rows."
        )
