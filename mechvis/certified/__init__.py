"""The top units of a sweep, from as few images as a stated guarantee allows (docs/certified.md).

    found = mechvis.certified_top(model, images, top=16, units="heads", edit="mean_positional")
    print(certificate(found))

| file | what it answers |
| --- | --- |
| `top.py` | the whole: a sweep's arguments in, the top units and their effects out |
| `elimination.py` | which units need more images, and which are in or out |
| `bounds.py` | how far a mean may lie from what was measured |
| `order.py` | which images come first |
| `rounds.py` | what was measured in each round, and the table it becomes |
| `first_order.py` | a cheap estimate of all effects by gradients, to lower the variance |
| `calibration.py` | how wide intervals must be in practice, by simulation |
| `words.py` | the guarantee, its assumption and its cost, in numbers and in words |
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "certified_top": "mechvis.certified.top",
        "certificate": "mechvis.certified.words",
        "eliminate": "mechvis.certified.elimination",
        "draw": "mechvis.certified.order",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.certified.elimination import eliminate
    from mechvis.certified.order import draw
    from mechvis.certified.top import certified_top
    from mechvis.certified.words import certificate
