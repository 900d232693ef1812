"""Which tokens of an image become rows: all, those of a type, or some of a type drawn at random for each image.

One grammar for Python and the command line: types separated by commas, each perhaps with how many to draw per image.

=====================  ==========================================================================================
words                  rows per image
=====================  ==========================================================================================
`all`                  every token of the site
`patches`              the image tokens
`cls`, `registers`     those prefix tokens (also `prefix`: all of them, or a name from `model.parts.prefix`)
`16` or `all:16`       16 of all tokens, drawn for each image
`cls,patches:16`       the class token, and 16 patches drawn for each image
=====================  ==========================================================================================

Types come from the model's own map (`parts.prefix`), never from positions that somebody remembers: where registers lie
differs between libraries.
"""

from dataclasses import dataclass

import numpy as np

from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.store.order import sample

NO_TOKEN = -1
"""Token index of a row that belongs to the image as a whole (pooled, logits)."""
MOST = 2**15
"""Token indices are kept as 16-bit numbers."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of each image that become rows."""

    groups: tuple[tuple[tuple[int, ...], int], ...]
    """Disjoint groups: token indices, and how many of them per image."""
    seed: int = 0
    """Of what is drawn."""

    @property
    def per_image(self) -> int:
        """Rows per image."""
        return sum(count for _, count in self.groups)

    @property
    def fixed(self) -> np.ndarray | None:
        """The tokens, ascending, if they are the same for every image; else None."""
        if any(count < len(group) for group, count in self.groups):
            return None
        return np.sort(np.concatenate([np.asarray(group, dtype=np.int64) for group, _ in self.groups]))

    def of(self, images: np.ndarray) -> np.ndarray:
        """Token index of every row of these images, ascending, int64 `[image token]`.

        Args:
            images: positions in the image set.
        """
        if (fixed := self.fixed) is not None:
            return np.broadcast_to(fixed, (len(images), len(fixed)))
        drawn = [
            np.asarray(group, dtype=np.int64)[sample(len(group), count, self.seed, images, i)]
            for i, (group, count) in enumerate(self.groups)
        ]
        return np.sort(np.concatenate(drawn, axis=1), axis=1)


WHOLE_IMAGE = Tokens((((NO_TOKEN,), 1),))
"""One row per image."""


def canonical(tokens: str | int) -> str:
    """The selection in its one spelling.

    Raises:
        BadData: not of this grammar.

    Example:
        >>> canonical(16), canonical(" cls , patches:4 ")
        ('all:16', 'cls,patches:4')
    """
    return ",".join(kind if count is None else f"{kind}:{count}" for kind, count in _parsed(tokens))


def select(tokens: str | int, *, prefix: tuple[str, ...], n_tokens: int, seed: int = 0) -> Tokens:
    """The tokens that a selection means in a model.

    Args:
        tokens: see the top of this file.
        prefix: names of the tokens before the patches.
        n_tokens: length of the residual stream.
        seed: of what is drawn.

    Raises:
        BadData: not of this grammar, a token twice, or a type that the model has none of.
        OutOfRange: more tokens than there are.

    Example:
        >>> select("cls,patches:2", prefix=("cls",), n_tokens=10).per_image
        3
    """
    if n_tokens > MOST:
        raise OutOfRange(f"{n_tokens} tokens per image; a store holds at most {MOST}.")
    groups, seen = [], set()
    for kind, count in _parsed(tokens):
        group = _of_type(kind, prefix, n_tokens)
        if twice := seen & set(group):
            raise BadData(f"tokens={tokens!r} names token {min(twice)} twice. Name each type once.")
        seen |= set(group)
        if count is not None and count > len(group):
            raise OutOfRange(f"tokens={tokens!r}: {count} of {kind}, and an image has {len(group)} of them.")
        groups.append((group, len(group) if count is None else count))
    return Tokens(tuple(groups), seed)


def type_names(tokens: np.ndarray, prefix: tuple[str, ...]) -> np.ndarray:
    """Type of each token index: a name of the prefix, `patch`, or `image` for rows of the whole image.

    Example:
        >>> type_names(np.array([0, 1, 5, -1]), ("cls",)).tolist()
        ['cls', 'patch', 'patch', 'image']
    """
    names = np.array([*prefix, "patch", "image"])
    return names[np.where(tokens < 0, len(prefix) + 1, np.minimum(tokens, len(prefix)))]


def _parsed(tokens: str | int) -> list[tuple[str, int | None]]:
    words = [word.strip() for word in str(tokens).split(",")]
    found = []
    for word in words:
        kind, _, count = (f"all:{word}" if word.isdecimal() else word).partition(":")
        if isinstance(tokens, bool) or not kind or (_ and not (count.isdecimal() and int(count) > 0)):
            raise BadData(
                f"tokens={tokens!r} is no selection of tokens: write a type (all, patches, cls, registers), a number "
                "to draw per image, or several with commas, e.g. 'cls,patches:16'."
            )
        found.append((kind, int(count) if count else None))
    return found


def _of_type(kind: str, prefix: tuple[str, ...], n_tokens: int) -> tuple[int, ...]:
    if kind == "all":
        return tuple(range(n_tokens))
    if kind == "patches":
        return tuple(range(len(prefix), n_tokens))
    if kind == "prefix":
        group = tuple(range(len(prefix)))
    else:
        group = tuple(
            i for i, name in enumerate(prefix) if name == kind or (kind, name[:8]) == ("registers", "register")
        )
    if not group:
        if kind in ("prefix", "cls", "registers"):
            raise BadData(f"tokens={kind!r}: this model has no such token; its prefix is {list(prefix)}.")
        raise unknown("type of token", kind, ("all", "patches", "prefix", "registers", *prefix))
    return group
