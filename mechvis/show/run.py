"""One forward pass in a notebook: what came out, what was edited, what was captured."""

from typing import Any

from mechvis.show.cache import captured
from mechvis.show.html import Html, bold, code, fold, join, line, page, shape, table

_IMAGES, _BEST = 6, 3


def run(done: Any) -> str:
    """The display of a `Run`.

    Example:
        >>> run(model.run(pixels, capture=["blocks.*.attn.hook_z"]))                              # doctest: +SKIP
    """
    output = done.output
    head = line(
        bold("Run"),
        join(["output: ", code(done.output_site), f" {shape(output.shape)}"]),
        f"{str(output.dtype).removeprefix('torch.')} on {output.device}",
    )
    edits = [Html(f"<div>edit: {code(edit)}</div>") for edit in done.edits[:20]]
    if len(done.edits) > 20:
        edits.append(line(f"{len(done.edits) - 20} more edits"))
    if not done.edits:
        edits = [line("no edits")]
    kept = captured(done.cache)
    body = fold(f"{len(done.cache)} captured sites", kept) if len(done.cache) else line("nothing captured")
    return page(head, *edits, _best(done), body)


def _best(done: Any) -> Html:
    """The largest logits of the first rows: numbers of classes, since a run knows no names."""
    logits = done.output
    if done.output_site != "hook_logits" or logits.ndim != 2 or not all(logits.shape):
        return Html("")
    some = logits[:_IMAGES].detach().float()
    values, places = some.topk(min(_BEST, some.shape[1]), dim=1)
    rows = [
        [row, ", ".join(f"class {int(k)} ({float(v):+.3g})" for k, v in zip(places[row], values[row], strict=True))]
        for row in range(len(some))
    ]
    more = f", first {len(some)} of {len(logits)} rows" if len(logits) > len(some) else ""
    return fold(f"largest logits{more}", table(["row", "classes"], rows, ["row"]))
