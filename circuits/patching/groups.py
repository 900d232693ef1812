"""Object, background and prefix: the three groups of tokens that most questions over pairs are about.

An object patch is one most of whose pixels belong to the clean *or* the corrupt object: where either is, the halves
differ because of the object. The prefix (CLS, registers) is a group of its own, so that the groups together are all
tokens: what has left the patches and not reached the output yet is there.
"""

from dataclasses import replace
from typing import Any

import torch

from circuits.pairs.pairs import Pairs
from mechvis.errors import BadData
from mechvis.patches import Groups, patch_groups


def object_groups(model: Any, pairs: Pairs) -> Groups:
    """Groups `object`, `background` and (where the model has prefix tokens) `prefix`, one set per pair.

    Args:
        model: a wrapped vision model.
        pairs: with masks of at least one half.

    Raises:
        BadData: no masks, or a group that covers no patch of any pair.

    Example:
        >>> circuits.patch(model, pairs, units="patches", groups=object_groups(model, pairs))      # doctest: +SKIP
    """
    masks = [mask for mask in (pairs.masks, pairs.corrupt_masks) if mask is not None]
    if not masks:
        raise BadData(
            f"groups='object' needs object masks, and the pairs {pairs.name!r} have none. Make them from images with "
            "masks, or give groups as a grid such as (4, 4)."
        )
    found = patch_groups(model, pairs.clean, torch.stack(masks).any(0))
    if not found.n_prefix:
        return found
    prefix = torch.zeros_like(found.members[:, :1])
    prefix[..., : found.n_prefix] = True
    return replace(found, names=(*found.names, "prefix"), members=torch.cat([found.members, prefix], dim=1))
