"""Which other image gives its object or its background: one of another class, each equally likely."""

import numpy as np

from mechvis.errors import BadData


def other_class(labels: np.ndarray, donor_labels: np.ndarray, seed: int) -> np.ndarray:
    """For each image, a donor of another class, drawn by `seed`.

    Args:
        labels: class of each image.
        donor_labels: class of each possible donor.
        seed: of the draw.

    Returns:
        Positions of the donors, int64 `[image]`.

    Raises:
        BadData: a class for which every donor is of the same class.

    Example:
        >>> other_class(np.array([0, 1]), np.array([0, 1]), seed=0).tolist()
        [1, 0]
    """
    generator = np.random.default_rng(seed)
    chosen = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        others = np.flatnonzero(donor_labels != label)
        if not len(others):
            raise BadData(
                f"all {len(donor_labels)} donor images are of class {label}, so none can stand in for an image of that "
                "class. Give images of several classes."
            )
        own = labels == label
        chosen[own] = generator.choice(others, int(own.sum()))
    return chosen
