"""Is a dictionary of other people made of the tokens that its page says it is? Positions against the model's own map.

Files say which tokens they were trained on by positions that somebody remembered. One released set for DINOv2 documents
that its "registers only" dictionaries took positions 257 to 260; in Hugging Face's model registers are 1 to 4, so they
were trained on four patches of the last row. Where a token lies is known by the model (`model.parts.prefix`): ask it
before such a dictionary is used or compared.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.store.tokens import type_names

KINDS = ("all", "cls", "registers", "prefix", "patches")


def require_tokens(positions: Iterable[int], kind: str, *, prefix: Sequence[str], n_tokens: int) -> None:
    """Refuse positions that are not of the type that is claimed.

    Args:
        positions: token indices that a file or page names.
        kind: what they are said to be: all, cls, registers, prefix or patches.
        prefix: the model's own prefix tokens, `model.parts.prefix`.
        n_tokens: tokens of an image.

    Raises:
        BadData: some are of another type, or there are none; says what they are and where the type lies.
        OutOfRange: a position that no token has.
        UnknownName: not a type.

    Example:
        >>> prefix = ("cls", "register0", "register1", "register2", "register3")
        >>> require_tokens(range(1, 5), "registers", prefix=prefix, n_tokens=261)
        >>> require_tokens(range(257, 261), "registers", prefix=prefix, n_tokens=261)
        Traceback (most recent call last):
        ...
        mechvis.errors.BadData: positions 257 to 260 are said to be registers, but here they are 4 patch; registers ...
    """
    if kind not in KINDS:
        raise unknown("type of token", kind, KINDS)
    found = np.array(sorted(set(positions)), dtype=np.int64)
    if not len(found):
        raise BadData(f"no position is given, so nothing is {kind}.")
    if found[0] < 0 or found[-1] >= n_tokens:
        raise OutOfRange(f"positions {found[0]} to {found[-1]}: this model has {n_tokens} tokens, from 0.")
    types = type_names(found, tuple(prefix))
    wrong = [name for name in types if not _is(name, kind)]
    if wrong:
        here = [i for i in range(n_tokens) if _is(str(type_names(np.array([i]), tuple(prefix))[0]), kind)]
        told = ", ".join(f"{count} {name}" for name, count in Counter(map(str, wrong)).items())
        where = f"{here[0]} to {here[-1]}" if here else "nowhere"
        raise BadData(
            f"positions {found[0]} to {found[-1]} are said to be {kind}, but here they are {told}; {kind} are {where} "
            "in this model. The dictionary was trained on something else than it says, or with another library's order."
        )


def _is(name: str, kind: str) -> bool:
    if kind == "registers":
        return name.startswith("register")
    return {"all": True, "cls": name == "cls", "prefix": name != "patch", "patches": name == "patch"}[kind]
