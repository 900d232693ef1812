"""Positions that are said to be registers, and are patches."""

import pytest

from mechvis.errors import BadData, OutOfRange, UnknownName
from sae.formats import require_tokens

PREFIX = ("cls", "register0", "register1", "register2", "register3")


def test_registers_that_are_patches():
    """The released case: [257:261) with 257 + 4 tokens, registers at [1:5)."""
    require_tokens(range(1, 5), "registers", prefix=PREFIX, n_tokens=261)
    with pytest.raises(BadData, match=r"257 to 260 are said to be registers.*4 patch; registers are 1 to 4"):
        require_tokens(range(257, 261), "registers", prefix=PREFIX, n_tokens=261)


def test_each_type():
    for kind, positions in {"all": range(261), "cls": [0], "prefix": range(5), "patches": range(5, 261)}.items():
        require_tokens(positions, kind, prefix=PREFIX, n_tokens=261)
    with pytest.raises(BadData, match="1 cls, 1 register0"):
        require_tokens(range(261), "patches", prefix=PREFIX, n_tokens=261)
    with pytest.raises(BadData, match="registers are nowhere"):
        require_tokens([3], "registers", prefix=("cls",), n_tokens=50)


def test_what_cannot_be():
    with pytest.raises(BadData, match="no position"):
        require_tokens([], "cls", prefix=PREFIX, n_tokens=261)
    with pytest.raises(OutOfRange, match="has 257 tokens"):
        require_tokens(range(257, 261), "registers", prefix=PREFIX, n_tokens=257)
    with pytest.raises(UnknownName, match="registers"):
        require_tokens([1], "register", prefix=PREFIX, n_tokens=261)
