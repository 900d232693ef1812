"""How much does each concept matter for each image? One function, methods plug in (methods2.md 17.4; **A**, **K**).

==============  ===================================================================================================
method          importance of concept i, in the unit of the tail (a logit)
==============  ===================================================================================================
`grad_input`    slope of the answer by the mask of i at the whole image
`ig`            the same slope averaged on the way from the baseline (integrated gradients, midpoints)
`occlusion`     the answer minus the answer without i
`shapley`       mean gain of i over all orders in which concepts can join: exact up to 10 concepts, then sampled
`sobol`         share of the answer's variance under random masks in which i takes part (total Sobol index; no sign)
`tcav`          sign of what a bit more of i does to the answer
==============  ===================================================================================================

Where the tail is linear in the codes the first four are the same, `u_i (v_i . w)`, exactly (tested to 1e-10). They
differ where it is not: on earlier layers.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.record import finite
from probes.concepts.game import Game, game_of
from probes.concepts.shapley import shapley
from probes.concepts.sobol import sobol

Plugin = Callable[..., Float[np.ndarray, "image concept"]]


def grad_input(game: Game) -> Float[np.ndarray, "image concept"]:
    """Slope of the answer by each mask at the whole image: gradient times (code - baseline), summed over places."""
    masks = torch.ones(game.n_images, game.n_concepts, dtype=game.codes.dtype)
    return game.slopes(masks, torch.arange(game.n_images)).double().numpy()


def ig(game: Game, *, steps: int = 32) -> Float[np.ndarray, "image concept"]:
    """Integrated gradients from the baseline to the whole image, with midpoints."""
    if steps < 1:
        raise OutOfRange(f"steps={steps}: at least 1.")
    images = torch.arange(game.n_images)
    total = torch.zeros(game.n_images, game.n_concepts, dtype=torch.float64)
    for step in range(steps):
        at = torch.full((game.n_images, game.n_concepts), (step + 0.5) / steps, dtype=game.codes.dtype)
        total += game.slopes(at, images).double()
    return (total / steps).numpy()


def occlusion(game: Game) -> Float[np.ndarray, "image concept"]:
    """The answer minus the answer without the concept."""
    k = game.n_concepts
    masks = torch.cat([torch.ones(1, k), 1 - torch.eye(k)]).to(game.codes.dtype)
    answers = game.on_every_image(masks)
    return answers[:, :1] - answers[:, 1:]


def tcav(game: Game) -> Float[np.ndarray, "image concept"]:
    """Sign of the derivative along each concept, in all places at once."""
    return game.code_slopes().sign().double().numpy()


METHODS: Mapping[str, Plugin] = {
    "grad_input": grad_input,
    "ig": ig,
    "occlusion": occlusion,
    "shapley": shapley,
    "sobol": sobol,
    "tcav": tcav,
}


def importance(
    tail: Callable[..., torch.Tensor],
    codes: Any,
    method: str | Plugin = "grad_input",
    *,
    baseline: Any = None,
    takes_images: bool = False,
    batch_size: int = 256,
    **options: Any,
) -> Float[np.ndarray, "image concept"]:
    """Importance of each concept for each image (methods2.md 17.4, **A**; Sobol as in CRAFT, methods.md 12, **C**).

    Args:
        tail: codes to one number per row, in torch: `[row concept] -> [row]`, or `[row place concept] -> [row]` for
            codes with places. For `Factorisation f` and a head `w`: `lambda u: (u @ f.bank + f.centre) @ w`.
        codes: `[image concept]` or `[image place concept]`.
        method: a name, or a function of a :class:`probes.concepts.game.Game` of your own.
        baseline: what a removed concept becomes; zero by default. One number per concept, or as the codes.
        takes_images: the tail's second argument says which image each row is of.
        batch_size: rows per call of the tail.
        options: `steps` of `ig`; `design` and `seed` of `sobol`; `permutations`, `exact` and `seed` of `shapley`.

    Returns:
        `[image concept]`; `sobol` is >= 0, `tcav` -1, 0 or 1, the others in the unit of the tail.

    Raises:
        UnknownName: no such method.
        BadData: an option that the method does not have, or a tail without gradient for a method that needs it.
        ShapeMismatch, NotFinite, OutOfRange.

    Example:
        >>> codes = np.array([[1.0, 2.0]])
        >>> importance(lambda u: u @ torch.tensor([3.0, -1.0]).double(), codes, "occlusion")
        array([[ 3., -2.]])
    """
    game = game_of(tail, codes, baseline=baseline, batch_size=batch_size, takes_images=takes_images)
    return importance_in(game, method, **options)


def importance_in(game: Game, method: str | Plugin, **options: Any) -> Float[np.ndarray, "image concept"]:
    """The same for a game that is there already; errors as there."""
    if isinstance(method, str):
        if method not in METHODS:
            raise unknown("importance method", method, METHODS)
        known = [name for name in inspect.signature(METHODS[method]).parameters if name != "game"]
        if strange := sorted(set(options) - set(known)):
            raise BadData(f"{method} takes {', '.join(known) or 'no options'}, not {', '.join(strange)}.")
    plugin = METHODS[method] if isinstance(method, str) else method
    found = np.asarray(plugin(game, **options))
    if found.shape != (game.n_images, game.n_concepts):
        raise ShapeMismatch(
            f"an importance method gives [image concept] = [{game.n_images}, {game.n_concepts}], got "
            f"{list(found.shape)}."
        )
    return finite("the importances", found)
