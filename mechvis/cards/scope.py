"""What was tested and what a card says nothing about: one sentence from the facts, never by hand."""

from collections.abc import Mapping, Sequence
from typing import Any


def scope_of(what: str, subject: Mapping[str, Any], data: Mapping[str, Any], silent: Sequence[str]) -> str:
    """The scope statement.

    Args:
        what: what was tested, in words.
        subject: of the card.
        data: of the card.
        silent: what it says nothing about.

    Example:
        >>> scope_of("maps", {"name": "a ViT"}, {"n": 64, "name": "scenes"}, ["other models"])
        'Tested: maps, on 64 images of scenes, with a ViT. Says nothing about other models.'
    """
    listed = ", ".join(silent[:-1]) + (" or " if len(silent) > 1 else "") + silent[-1]
    return (
        f"Tested: {what}, on {data['n']} images of {data['name']}, with {subject['name']}. Says nothing about {listed}."
    )
