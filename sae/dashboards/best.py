"""The best few entries of every latent while images stream by: its top images, and a sample for quantiles.

One structure does both. An entry is an image on which a latent fires, with a key; every latent keeps the `size` entries
with the largest keys.

* key = activation: the top images.
* key = a hash of seed, image and latent (:func:`drawn`): a uniform sample of the images on which the latent fires.
  There is no reservoir and no state of a generator, so the sample does not depend on batches or order, and two runs
  that see the same images draw the same ones.

Memory is `[latent size]`, whatever the number of images. An entry that cannot enter is dropped before anything is
sorted, so after the first batches most of the work is one comparison per entry.
"""

import numpy as np
from jaxtyping import Float, Int

from mechvis.errors import OutOfRange, ShapeMismatch

EMPTY = -1
"""Image of a slot that holds nothing."""


class Best:
    """Per latent the entries with the largest keys; of equal keys the earlier image.

    Example:
        >>> best = Best(2, 1)
        >>> best.add(np.array([0, 0, 1]), np.array([0.5, 2.0, 1.0]), image=np.array([4, 5, 5]))
        >>> best.image[:, 0].tolist()
        [5, 5]
    """

    def __init__(self, n_latents: int, size: int):
        """Args:
            n_latents: how many.
            size: entries kept of each.

        Raises:
            OutOfRange: a size below one.
        """
        if size < 1:
            raise OutOfRange(f"{size} entries per latent are kept; it must be at least 1.")
        self.size = size
        self.key = np.full((n_latents, size), -np.inf)
        """Descending in every row; float64 `[latent size]`."""
        self.image = np.full((n_latents, size), EMPTY, np.int64)
        """The image of each entry; -1 where there is none."""
        self.value = np.zeros((n_latents, size))
        """Largest activation on the image."""
        self.row = np.full((n_latents, size), EMPTY, np.int64)
        """Row of the image where it is."""

    def add(
        self,
        latent: Int[np.ndarray, " entry"],
        key: Float[np.ndarray, " entry"],
        *,
        image: Int[np.ndarray, " entry"],
        value: Float[np.ndarray, " entry"] | None = None,
        row: Int[np.ndarray, " entry"] | None = None,
    ) -> None:
        """Offer entries, each image and latent once.

        Args:
            latent: which latent each is about.
            key: larger is kept; finite.
            image: which image.
            value: activation; default: the key.
            row: where in the image.

        Raises:
            ShapeMismatch: columns of different lengths.
        """
        value = key if value is None else value
        row = np.full(len(key), EMPTY) if row is None else row
        if len({len(latent), len(key), len(image), len(value), len(row)}) != 1:
            raise ShapeMismatch(
                f"entries need as many latents, keys, images, values and rows: got {len(latent)}, {len(key)}, "
                f"{len(image)}, {len(value)}, {len(row)}."
            )
        enters = key > self.key[latent, -1]
        # An equal key may still enter: the earlier image wins, in whatever order images come.
        enters |= (key == self.key[latent, -1]) & (image < self.image[latent, -1])
        latent, key, image, value, row = (column[enters] for column in (latent, key, image, value, row))
        if not len(latent):
            return
        touched = np.unique(latent)
        old = np.repeat(touched, self.size)
        held = self.image[touched].ravel() != EMPTY
        latent = np.concatenate([old[held], latent])
        key, image, value, row = (
            np.concatenate([kept[touched].ravel()[held], new])
            for kept, new in ((self.key, key), (self.image, image), (self.value, value), (self.row, row))
        )
        order = np.lexsort((image, -key, latent))
        latent = latent[order]
        first = np.searchsorted(latent, latent)
        place = np.arange(len(latent)) - first
        stays = place < self.size
        at = latent[stays], place[stays]
        for kept, new in ((self.key, key), (self.image, image), (self.value, value), (self.row, row)):
            kept[at] = new[order][stays]

    def only(self, latents: Int[np.ndarray, " latent"]) -> "Best":
        """The same for some latents, in that order."""
        found = Best(len(latents), self.size)
        found.key, found.image = self.key[latents], self.image[latents]
        found.value, found.row = self.value[latents], self.row[latents]
        return found


def drawn(
    image: Int[np.ndarray, " entry"], latent: Int[np.ndarray, " entry"] | int, seed: int
) -> Float[np.ndarray, " entry"]:
    """A number in [0, 1) for every pair, which depends on nothing else: splitmix64 (Steele et al. 2014).

    Args:
        image: position in the set.
        latent: number of the latent.
        seed: another seed, other numbers.

    Example:
        >>> a, b = drawn(np.array([3, 4]), 7, seed=0)
        >>> bool(0 <= a < 1 and a != b), bool(drawn(np.array([3]), 7, seed=0)[0] == a)
        (True, True)
    """
    with np.errstate(over="ignore"):
        x = _mixed(np.uint64(seed % 2**63) + np.asarray(image, np.uint64) * _STEP)
        x = _mixed(x + np.asarray(latent, np.uint64) * _STEP)
    return (x >> np.uint64(11)).astype(np.float64) / 2.0**53


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
