"""Random numbers that belong to one example and one purpose, so that the batch an image is in changes nothing.

Every draw of an attribution method or a faithfulness metric comes from a generator made of (seed, example, purpose).
Nothing uses or changes the process's own random state, and the same image gets the same numbers alone, in a batch of
any size, and in any order.
"""

import hashlib

import numpy as np
import torch


def generator_of(seed: int, example: int | str, purpose: str) -> torch.Generator:
    """A torch generator (on the CPU) for one example and purpose.

    Args:
        seed: of the whole computation.
        example: which example it is: its id, not its place in a batch.
        purpose: what the numbers are for; different purposes are independent.

    Example:
        >>> first, again = (torch.rand(2, generator=generator_of(0, 5, "masks")) for _ in range(2))
        >>> bool((first == again).all())
        True
    """
    return torch.Generator().manual_seed(_number(seed, example, purpose))


def numpy_of(seed: int, example: int | str, purpose: str) -> np.random.Generator:
    """The same for numpy.

    Example:
        >>> bool(numpy_of(0, 5, "masks").random() == numpy_of(0, 5, "masks").random())
        True
    """
    return np.random.default_rng(_number(seed, example, purpose))


def _number(seed: int, example: int | str, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{example}\0{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # what torch and numpy both take
