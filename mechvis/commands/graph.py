"""`mechvis sites`: the hook graph of a model, printed."""

import logging
from typing import Any

from mechvis.cli import columns, say
from mechvis.commands.words import calls


@calls("mechvis.graph:HookGraph.match")
def sites(model: str, /, *, match: tuple[str, ...] = ()) -> None:
    """Show the hook graph of a model: every site, its shape, and what it reads.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        match: names or patterns (* and ?); default: all sites.
    """
    import mechvis

    logging.getLogger("mechvis").setLevel(logging.WARNING)  # the parity line is printed below
    loaded = mechvis.load(model)
    towers = {"vision": loaded.vision, "text": loaded.text} if hasattr(loaded, "vision") else {"": loaded}
    wanted = {name: tuple(match) for name in towers}
    if match and len(towers) > 1:
        # A pattern may name one tower (vision.blocks.*) or mean both.
        wanted = {name: tuple(p.removeprefix(f"{name}.") for p in match if _meant(p, name, towers)) for name in towers}
    for name, tower in towers.items():
        if match and not wanted[name]:
            continue
        graph = tower.graph
        rows = []
        for site in map(graph.__getitem__, graph.match(wanted[name]) if match else graph.names):
            shape = " ".join(
                a if size is None else f"{a}={size}" for a, size in zip(site.axes, site.sizes, strict=True)
            )
            reads = ", ".join(_short(read, site.layer) for read in site.reads)
            rows.append((site.name, f"[{shape}]", reads, "on demand" if site.on_demand else ""))
        say(f"{tower.title or model}: {tower.parts.family}, {len(graph)} sites\n{tower.parity}\n")
        say(columns(rows, ("site", "shape", "reads", "")) + "\n")


def _meant(pattern: str, tower: str, towers: dict[str, Any]) -> bool:
    named = [other for other in towers if pattern.startswith(f"{other}.")]
    return not named or tower in named


def _short(site: str, layer: int | None) -> str:
    """A site's name as seen from its own block."""
    return site.removeprefix(f"blocks.{layer}.")
