"""Random order that any version, machine or number of processes draws alike.

The order of batches and the choice of tokens are part of what a training run *is*: they have to come out the same
years later, in another process, from any position. So nothing here has a state, and nothing depends on a library's
generator: the key of a thing is a hash of the seed and of what the thing is (which image, which token), and things are
taken in the order of their keys.

The hash is the finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
once per word.
"""

import numpy as np

TOKENS, BLOCKS, ROWS = 1, 2, 3
"""What a key is for: which tokens of an image, the order of blocks, the order of rows inside a pool."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def keys(seed: int, *words: int | np.ndarray) -> np.ndarray:
    """A hash of the seed and the words, uint64, of the words' common shape.

    Args:
        seed: any whole number.
        words: what the key is for: numbers or int arrays, which broadcast.

    Example:
        >>> [hex(key) for key in keys(7, TOKENS, np.arange(2))]
        ['0xba58fc8c488d2828', '0xf07a6bfa6eeaa696']
    """
    state = _scrambled(np.full((1,), seed & _MASK, dtype=np.uint64))
    for word in words:
        word = np.asarray(word)
        state = _scrambled(state + np.uint64(_GOLDEN) + np.atleast_1d(word).astype(np.uint64))
    return state


def permutation(n: int, seed: int, *words: int) -> np.ndarray:
    """A random order of 0 to n - 1, int64 `[n]`, fixed by the seed and the words.

    Example:
        >>> sorted(permutation(5, 0, BLOCKS).tolist())
        [0, 1, 2, 3, 4]
    """
    return np.argsort(keys(seed, *words, np.arange(n)), kind="stable")


def sample(n: int, count: int, seed: int, images: np.ndarray, group: int = 0) -> np.ndarray:
    """`count` of 0 to n - 1 for each image, ascending, int64 `[image count]`; without replacement, all sets alike.

    An image gets the same numbers whatever other images are asked for, and others in every group.
    """
    if count == n:
        return np.broadcast_to(np.arange(n), (len(images), n))
    drawn = keys(seed, TOKENS, group, np.asarray(images)[:, None], np.arange(n)[None])
    return np.sort(np.argpartition(drawn, count, axis=1)[:, :count], axis=1)


def _scrambled(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
