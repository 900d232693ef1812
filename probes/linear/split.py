"""Who trains a probe, who chooses its weight decay, who judges it: three parts that share no image.

Stratified by what is to be read (rare classes are in every part as far as they can be) and seeded. `together=` keeps
images of one group (frames of a video, near duplicates) in one part; a probe that has seen an image's twin knows it.
"""

from dataclasses import dataclass

import numpy as np

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap

FRACTIONS = (0.6, 0.1, 0.3)
"""Train, validation and test; 30 % are held out as in the paper (**N**), validation comes from the 70 % (**X**)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Positions of images, in three parts that share none.

    Raises:
        SplitOverlap: parts that share an image.
        BadData: an empty training part, or a position twice in one part.

    Example:
        >>> Split(train=np.array([0, 1]), validation=np.array([2]), test=np.array([3])).sizes
        {'train': 2, 'validation': 1, 'test': 1}
    """

    train: np.ndarray
    """Fits the probes."""
    validation: np.ndarray
    """Chooses the weight decay; may be empty."""
    test: np.ndarray
    """Judges; empty where other images do."""

    def __post_init__(self):
        parts = {name: np.asarray(getattr(self, name)) for name in ("train", "validation", "test")}
        for name, part in parts.items():
            if part.ndim != 1 or (part.size and not np.issubdtype(part.dtype, np.integer)):
                raise ShapeMismatch(f"the {name} part is a list of positions, got {part.dtype} {list(part.shape)}.")
            if len(np.unique(part)) != len(part):
                raise BadData(f"the {name} part names an image twice.")
            if not len(part) and name == "train":
                raise BadData("the train part is empty: nothing could be learnt. Use more images.")
            object.__setattr__(self, name, part.astype(np.int64))
        for first, second in (("train", "test"), ("validation", "test"), ("train", "validation")):
            shared = np.intersect1d(parts[first], parts[second])
            if len(shared):
                raise SplitOverlap(
                    f"the {first} and the {second} part share {len(shared)} images (the first: {int(shared[0])}). A "
                    "probe is judged on images that it has not seen: make the parts disjoint, e.g. with split_images."
                )

    @property
    def sizes(self) -> dict[str, int]:
        """Images of each part."""
        return {name: len(getattr(self, name)) for name in ("train", "validation", "test")}

    def within(self, n: int) -> "Split":
        """Itself, if all positions are below `n`.

        Raises:
            OutOfRange: a position that is no image.
        """
        most = max(int(part.max(initial=-1)) for part in (self.train, self.validation, self.test))
        least = min(int(part.min(initial=0)) for part in (self.train, self.validation, self.test))
        if most >= n or least < 0:
            raise OutOfRange(f"the split names image {most if most >= n else least}, and there are {n} (0 to {n - 1}).")
        return self


def split_images(
    target: np.ndarray,
    fractions: tuple[float, float, float] = FRACTIONS,
    *,
    seed: int = 0,
    together: np.ndarray | None = None,
) -> Split:
    """A stratified, seeded split of images.

    Args:
        target: what is to be read, `[image]` or `[image ...]`; strata for classes, ignored for anything else.
        fractions: of train, validation and test (the last two may be 0); they sum to at most 1.
        seed: who goes where.
        together: a group per image; a group stays in one part (then strata are ignored).

    Raises:
        BadData: impossible fractions, or a part that would be empty.

    Example:
        >>> split_images(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), (0.6, 0.0, 0.4)).sizes
        {'train': 6, 'validation': 0, 'test': 4}
    """
    if len(fractions) != 3 or min(fractions) < 0 or not fractions[0] or sum(fractions) > 1 + 1e-9:
        raise BadData(f"fractions={fractions}: train above 0, validation and test 0 or more, at most 1 together.")
    target = np.asarray(target)
    generator = np.random.default_rng(seed)
    if together is not None:
        together = np.asarray(together)
        if len(together) != len(target):
            raise ShapeMismatch(f"{len(target)} images and {len(together)} entries of together=.")
        groups, member = np.unique(together, return_inverse=True)
        pieces = [np.flatnonzero(member == group) for group in generator.permutation(len(groups))]
        strata = [np.concatenate(pieces)]
        ends = np.cumsum([0, *(len(piece) for piece in pieces)])
    else:
        discrete = target.ndim == 1 and (target.dtype.kind != "f" or (target == np.round(target)).all())
        known = target if discrete and len(np.unique(target)) <= len(target) / 3 else np.zeros(len(target), int)
        strata = [generator.permutation(np.flatnonzero(known == value)) for value in np.unique(known)]
        ends = None
    parts: list[list[int]] = [[], [], []]
    for members in strata:
        bounds = np.round(np.cumsum((0.0, *fractions)) * len(members)).astype(int)
        if ends is not None:
            # To the nearest end of a group, so that no group is cut.
            bounds = ends[np.abs(ends[None] - bounds[:, None]).argmin(1)]
        for part, start, stop in zip(parts, bounds[:-1], bounds[1:], strict=True):
            part.extend(members[start:stop])
    for name, fraction, part in zip(("train", "validation", "test"), fractions, parts, strict=True):
        if fraction and not part:
            raise BadData(
                f"the {name} part ({fraction:g} of {len(target)} images in {len(strata)} strata) would be empty. Use "
                "more images, or other fractions."
            )
    train, validation, test = (np.sort(np.array(part, dtype=np.int64)) for part in parts)
    return Split(train=train, validation=validation, test=test)
