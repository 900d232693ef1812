"""Control tasks: what a probe learns where there is nothing to read but the identity of its input.

Hewitt and Liang (2019; **K**): give each *type* a random label, fixed across its occurrences, and probe for that. A
probe that does it well memorises; `selectivity = accuracy on the task - accuracy on the control`, on held-out images
and at equal capacity. Types of images (**X**, methods.md 3.2):

* `types=None`: every image is its own type. A held-out image's label was never seen, so the control is at chance, and
  selectivity says how far above it the task is.
* `types=` a group per image (near-duplicate cluster, source video, texture): a held-out image's type was seen. A probe
  that can tell the types apart learns the control, and its accuracy on the task proves that much less.
"""

import numpy as np

from mechvis.errors import ShapeMismatch


def control_labels(target: np.ndarray, types: np.ndarray | None = None, *, seed: int = 0) -> np.ndarray:
    """Random labels with the frequencies of the true ones, one per type.

    Args:
        target: true targets `[image]` or `[image ...]`; what is drawn are rows of it.
        types: a group per image; None: each image by itself (a permutation of the targets).
        seed: of the draw.

    Returns:
        As `target`.

    Raises:
        ShapeMismatch: another number of types than of images.

    Example:
        >>> labels = control_labels(np.array([0, 1, 0, 1]), np.array(["a", "a", "b", "b"]), seed=1)
        >>> bool(labels[0] == labels[1] and labels[2] == labels[3])
        True
    """
    target = np.asarray(target)
    generator = np.random.default_rng(seed)
    if types is None:
        return target[generator.permutation(len(target))]
    types = np.asarray(types)
    if types.shape != target.shape[:1]:
        raise ShapeMismatch(f"{len(target)} targets and types of the shape {list(types.shape)}: one type per image.")
    names, member = np.unique(types, return_inverse=True)
    return target[generator.integers(0, len(target), len(names))][member]
