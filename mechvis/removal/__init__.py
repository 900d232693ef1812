"""What happens to a patch that is taken away, and what the model says then.

A patch cannot simply be missing from an image: something stands in its place, and what that is changes every number
that is computed from it. So it is a value with a name and a version (`operators`), and one function (`Game.scores`)
computes what the model says of images of which some patches are kept, for every method and every metric alike.

* operators: `Zero`, `Mean`, `Blur`, `OtherImage`, `NoisyLinear` (pixels), `MeanToken` (the stream after the
  embedding), `TokenDrop` (the model never sees the token).
* `Game`: an image, a target, an operator: masks in, scores out.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Operator": "mechvis.removal.operators",
        "Zero": "mechvis.removal.operators",
        "Mean": "mechvis.removal.operators",
        "Blur": "mechvis.removal.operators",
        "OtherImage": "mechvis.removal.operators",
        "NoisyLinear": "mechvis.removal.operators",
        "MeanToken": "mechvis.removal.operators",
        "TokenDrop": "mechvis.removal.operators",
        "operator": "mechvis.removal.operators",
        "OPERATORS": "mechvis.removal.operators",
        "Game": "mechvis.removal.game",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.removal.game import Game
    from mechvis.removal.operators import (
        OPERATORS,
        Blur,
        Mean,
        MeanToken,
        NoisyLinear,
        Operator,
        OtherImage,
        TokenDrop,
        Zero,
        operator,
    )
