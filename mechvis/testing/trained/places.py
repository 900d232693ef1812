"""Names of the places that can be exchanged in a planted model, and their tokens.

==================  ==================================================================================================
name                what it is
==================  ==================================================================================================
`L0H1@cls`          what head 1 of layer 0 writes at the tokens of one group; `@all`: at every token
`L0MLP@patch`       what an MLP writes there
`cls->L1H2`         a path: the stream of one token group, as head 2 of layer 1 reads it (queries, keys and values)
`direct->out`       a path: everything that the read-out reads, except the last MLP's own write
==================  ==================================================================================================

Token groups are `cls`, `register`, `patch`. The names of whole nodes (`L0H1`, `L1MLP`) are those of every table of this
library.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from mechvis.errors import BadData, OutOfRange, UnknownName
from mechvis.models.parts import TowerParts

GROUPS = ("cls", "register", "patch")
DIRECT = "direct->out"

_WRITE = re.compile(r"L(\d+)(?:H(\d+)|(MLP))@(\w+)")
_READ = re.compile(r"(\w+)->L(\d+)H(\d+)")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A parsed name."""

    kind: str
    """`head`, `mlp`, `read` or `direct`."""
    layer: int = -1
    """Layer of the head or MLP; -1 for `direct`."""
    head: int = -1
    """Head index; -1 where there is none."""
    group: str = "all"
    """Token group."""


@lru_cache(maxsize=1024)
def place(name: str) -> Place:
    """What a name means.

    Raises:
        UnknownName: not a name of the table above.

    Example:
        >>> place("L0H1@cls")
        Place(kind='head', layer=0, head=1, group='cls')
    """
    if name == DIRECT:
        return Place(kind="direct")
    if (found := _WRITE.fullmatch(name)) and found[4] in (*GROUPS, "all"):
        kind = "mlp" if found[3] else "head"
        return Place(kind=kind, layer=int(found[1]), head=int(found[2] or -1), group=found[4])
    if (found := _READ.fullmatch(name)) and found[1] in GROUPS:
        return Place(kind="read", layer=int(found[2]), head=int(found[3]), group=found[1])
    raise UnknownName(
        f"{name!r} is no place. Places are called like L0H1@cls, L0MLP@patch, L0H1@all, cls->L1H2 and {DIRECT}; the "
        f"token groups are {', '.join(GROUPS)}."
    )


def node_of(name: str) -> str:
    """The whole node of a place: `L0H1` of `L0H1@cls`."""
    return name.partition("@")[0]


def groups_of(parts: TowerParts) -> dict[str, slice]:
    """Token group -> its tokens, for the groups that a model has.

    Raises:
        BadData: prefix tokens that are neither CLS nor registers.
    """
    prefix = parts.prefix
    if prefix[:1] != ("cls",) or not all(name.startswith("register") for name in prefix[1:]):
        raise BadData(f"planted models have a CLS token, then registers; the prefix of this one is {prefix}.")
    found = {"cls": slice(0, 1), "register": slice(1, len(prefix)), "patch": slice(len(prefix), parts.n_tokens)}
    return {name: tokens for name, tokens in found.items() if tokens.stop > tokens.start}


def check_place(name: str, parts: TowerParts) -> Place:
    """A place that this model has.

    Raises:
        UnknownName: no place has this name.
        OutOfRange: a layer, head or token group that the model lacks.
    """
    found = place(name)
    if found.kind == "direct":
        return found
    groups = groups_of(parts)
    if found.layer >= len(parts.blocks) or found.head >= parts.blocks[found.layer].attn.n_heads:
        raise OutOfRange(f"{name}: the model has {len(parts.blocks)} layers of {parts.blocks[0].attn.n_heads} heads.")
    if found.group != "all" and found.group not in groups:
        raise OutOfRange(f"{name}: the model has the token groups {', '.join(groups)}.")
    return found
