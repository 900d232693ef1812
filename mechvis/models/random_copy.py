"""The same architecture with random weights: the control of everything that claims to say something of *this* model.

:func:`random_copy` never touches the user's model: the bare module is copied deeply, the copy gets new weights and is
wrapped again.

* `how="init"` (**X**, default): the family's own initialisation (`_init_weights` of Hugging Face models,
  `reset_parameters` elsewhere). A matrix that neither reaches is shuffled.
* `how="shuffle"`: the entries of every matrix in a random order: its distribution stays, what it computes goes. For any
  architecture, and a stronger baseline: weight sizes are those of the trained model.

With `only=` some parameters alone are changed (the head, the blocks from some layer on): for cascades from the top.
"""

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from mechvis.errors import BadData, FailedCheck, unknown


def random_copy(
    model: Any,
    *,
    seed: int = 0,
    how: Literal["init", "shuffle"] = "init",
    only: Callable[[str], bool] | None = None,
) -> Any:
    """The same architecture with random weights, wrapped; the model itself and torch's generator stay as they are.

    Args:
        model: a wrapped image tower.
        seed: of the new weights.
        how: see the module.
        only: which parameters get new values, by their names in the user's module; None: all.

    Returns:
        A wrapped model with the same sites. A tower of a CLIP model comes back as a tower; one with a zero-shot head
        keeps its prompts.

    Raises:
        UnknownName: no such way.
        BadData: `only` chooses no parameter.
        FailedCheck: a matrix kept its trained values.

    Example:
        >>> other = random_copy(model)                                                            # doctest: +SKIP
        >>> top = random_copy(model, only=lambda name: "classifier" in name)                      # doctest: +SKIP
    """
    from mechvis.models.load import wrap

    if how not in ("init", "shuffle"):
        raise unknown("way to randomise", how, ("init", "shuffle"))
    bare = copy.deepcopy(model.bare)
    before = {name: parameter.detach().clone() for name, parameter in bare.named_parameters()}
    chosen = [name for name in before if only is None or only(name)]
    if not chosen:
        raise BadData(f"only= chooses none of the {len(before)} parameters, e.g. {next(iter(before))}.")
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        if how == "init":
            _initialise(bare)
        for name, parameter in bare.named_parameters():
            if name not in chosen:
                parameter.copy_(before[name])
            elif parameter.ndim > 1 and torch.equal(parameter, before[name]):
                parameter.copy_(
                    parameter.flatten()[torch.randperm(parameter.numel(), device=parameter.device)].view_as(parameter)
                )
    kept = [
        name
        for name, parameter in bare.named_parameters()
        if name in chosen
        and parameter.ndim > 1
        and torch.equal(parameter, before[name])
        and parameter.min() != parameter.max()
    ]
    if kept:
        raise FailedCheck(f"{len(kept)} matrices of the random copy kept their trained values, e.g. {kept[0]}.")
    # A tower gets its " vision" back from the model that it is wrapped in.
    title = f"random {(model.title or 'copy').removesuffix(' vision')}"
    wrapped = wrap(bare.eval(), preprocess=model.preprocess, title=title, family=model.family)
    return getattr(wrapped, "vision", wrapped)


def _initialise(bare: nn.Module) -> None:
    """The family's own initialisation, module by module."""
    own = getattr(bare, "_init_weights", None)
    for module in bare.modules():
        # Hugging Face marks what was loaded, and its initialisers then leave it alone.
        for thing in (module, *module.parameters(recurse=False), *module.buffers(recurse=False)):
            if "_is_hf_initialized" in getattr(thing, "__dict__", {}):
                del thing._is_hf_initialized
    for module in bare.modules():
        if own is not None:
            own(module)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
