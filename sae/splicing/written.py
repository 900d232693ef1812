"""What changed codes write, as edits: for dictionaries that read more than one run can offer when the first is written.

A crosscoder over layers reads a later layer than it writes; one over models reads another model. So: run, capture,
encode once, change the codes, and add to each site what the change writes there,

    x_s' = x_s + (f' - f) W_s

by a plain `edits.add`, which saves as any other. Codes are those of the unedited runs: a change at an early layer does
not reach the codes of a later one. With the error term, always.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.edits import Edit, Rows, Tokens
from mechvis.errors import BadData, ShapeMismatch, unknown
from sae.dictionary import Dictionary
from sae.splicing.splice import check_linear, row_scale

Codes = Float[Tensor, "row token latent"]


def written_changes(
    dictionary: Dictionary,
    activations: Mapping[str, Tensor],
    change: Callable[[Codes], Codes] | Sequence[int],
    *,
    sites: Mapping[str, str] | None = None,
    rows: Rows = None,
    tokens: Tokens = None,
) -> list[Edit]:
    """Edits that add what a change of codes writes, one per site.

    Args:
        dictionary: of any kind.
        activations: all that it reads, by the dictionary's names, `[row token (head) d]`, of the very images that will
            be edited.
        change: codes to changed codes; or latents to set to zero.
        sites: the dictionary's names of what is to be edited -> sites of the model; by default all that it writes,
            under their own names (without the `name/` of a model).
        rows, tokens: where.

    Raises:
        BadData, UnknownName: activations or sites that are missing.
        ShapeMismatch: changed codes of another shape.
        RefusedMethod: what it writes is not linear in the codes.

    Example:
        >>> both = {"base/x": base.cache["x"], "after/x": after.cache["x"]}                       # doctest: +SKIP
        >>> changes = written_changes(crosscoder, both, [17], sites={"after/x": "x"})             # doctest: +SKIP
        >>> tuned.run(pixels, edits=changes).logits                                               # doctest: +SKIP
    """
    check_linear(dictionary)
    ends = dictionary.ends
    sites = {name: name.rsplit("/", 1)[-1] for name in ends.writes} if sites is None else dict(sites)
    for name in sites:
        if name not in ends.writes:
            raise unknown("site that is written", name, ends.writes)
    flat, shapes = {}, {}
    for name, width in ends.reads.items():
        if name not in activations:
            raise BadData(f"this dictionary reads {name}; the activations have {', '.join(activations) or 'nothing'}.")
        value = activations[name]
        flat[name] = value if value.shape[-1] == width else value.flatten(-2)
        shapes[name] = value.shape
    if len({value.shape[:-1] for value in flat.values()}) > 1:
        told = ", ".join(f"{name} {list(value.shape)}" for name, value in flat.items())
        raise ShapeMismatch(f"activations are of the same rows and tokens at every site; got {told}.")
    with torch.no_grad():
        read = ends.read(flat)
        codes = dictionary.encode(read)
        if callable(change):
            changed = change(codes)
            if not isinstance(changed, Tensor) or changed.shape != codes.shape:
                raise ShapeMismatch(f"changed codes must be {list(codes.shape)}.")
        else:
            index = list(change)
            if not index or any(not 0 <= latent < codes.shape[-1] for latent in index):
                raise BadData(f"latents {index[:6]}: at least one, from 0 to {codes.shape[-1] - 1}.")
            changed = codes.clone()
            changed[..., index] = 0
        written = (changed - codes) @ dictionary.directions
        scale = row_scale(dictionary, read)
        parts = ends.split(written if scale is None else written * scale)
    found = []
    for name, site in sites.items():
        vector = parts[name]
        shape = shapes.get(name)
        vector = vector if shape is None or shape[-1] == vector.shape[-1] else vector.reshape(shape)
        found.append(edits.add(site, vector, rows=rows, tokens=tokens))
    return found
