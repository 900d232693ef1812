"""Captured activations in a notebook: name, shape with the words of its axes, type, bytes, and the total."""

from typing import Any

from mechvis.cache import version_of
from mechvis.show.html import Html, bold, code, join, line, n_bytes, page, shape, table

_ROWS = 150


def cache(kept: Any) -> str:
    """The display of a `Cache`.

    Example:
        >>> cache(model.run(pixels, capture=["blocks.*.attn.hook_z"]).cache)                      # doctest: +SKIP
    """
    return page(captured(kept))


def captured(kept: Any) -> Html:
    """The same as a part of a larger display."""
    # Past the check that reading does: a tensor that was changed is shown as such, not refused.
    tensors = kept._tensors
    rows = []
    for name, value in list(tensors.items())[:_ROWS]:
        changed = version_of(value) != kept._versions[name]
        rows.append(
            [
                code(name),
                shape(value.shape, kept._graph[name].axes),
                str(value.dtype).removeprefix("torch."),
                n_bytes(value.numel() * value.element_size()),
                "changed in place since: reading it is an error" if changed else "",
            ]
        )
    devices = sorted({str(value.device) for value in tensors.values()})
    head = line(bold("Cache"), f"{len(tensors)} sites", f"{n_bytes(kept.n_bytes)} in all", ", ".join(devices))
    if not rows:
        return join([head, line("nothing was captured: name sites with capture=[...]")])
    more = line(f"{len(tensors) - _ROWS} more sites") if len(tensors) > _ROWS else Html("")
    note = any(row[-1] for row in rows)
    columns = ["site", "shape", "type", "bytes", *([""] if note else [])]
    return join([head, table(columns, [row if note else row[:-1] for row in rows], ["bytes"]), more])
