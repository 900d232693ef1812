"""A model in a notebook: what it is, whether it computes what the bare model computes, and every site by name.

Blocks whose sites have the same names and shapes are shown once. Nothing is run: shapes come from the hook graph, sizes
from the parameters.
"""

from itertools import groupby
from typing import Any

from mechvis.show.html import Html, bold, code, facts, fold, join, line, n_bytes, page, shape, table, text

_CLASSES = 12
_SITES = 400
"""Sites that are listed; no known model comes near."""


def model(vit: Any) -> str:
    """The display of a `HookedViT`.

    Example:
        >>> model(mechvis.load("scenes-vit"))                                                     # doctest: +SKIP
    """
    return page(*_tower(vit))


def clip(two: Any) -> str:
    """The display of a `HookedCLIP`: both towers to unfold.

    Example:
        >>> clip(mechvis.load("scenes-clip"))                                                     # doctest: +SKIP
    """
    scale, bias = (None if x is None else f"{x.item():.4g}" for x in two._scale_and_bias())
    known = {"logit scale": scale, "logit bias": bias, "trained with": f"a {two.towers.loss} over texts"}
    towers = [
        fold(join([bold(name), f": {_in_short(tower)}"]), join(_tower(tower, size=False)))
        for name, tower in (("vision", two.vision), ("text", two.text))
    ]
    return page(bold("HookedCLIP"), facts({**known, "size": _size(two.bare)}), *towers)


def _in_short(vit: Any) -> str:
    return f"{vit.cfg.n_layers} layers x {vit.cfg.n_heads} heads x {vit.cfg.d_head}, d_model {vit.cfg.d_model}"


def _tower(vit: Any, size: bool = True) -> list[Html]:
    parts = vit.parts
    grid = parts.grid
    classes = list(parts.class_names or ())
    known = {
        "family": parts.family,
        "architecture": _in_short(vit),
        "input": f"{parts.image_size[0]}x{parts.image_size[1]} px, {grid[0]}x{grid[1]} patches" if grid else "texts",
        "tokens": f"{parts.n_tokens}, first: {', '.join(parts.prefix)}" if parts.prefix else str(parts.n_tokens),
        "classes": _classes(classes),
        "size": _size(vit.bare) if size else None,
        "type and place": f"{str(vit.dtype).removeprefix('torch.')} on {vit.device}",
        "parity": text(vit.parity, 400) if vit.parity is not None else "not checked: wrapped without a test batch",
    }
    return [join([bold(vit.title or parts.family), " (HookedViT)"]), facts(known), _sites(vit.graph)]


def _classes(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _CLASSES} more" if len(names) > _CLASSES else ""
    return f"{len(names)}: {', '.join(str(name)[:40] for name in names[:_CLASSES])}{more}"


def _sites(graph: Any) -> Html:
    """Sites in the order they fire, one fold per group of blocks that are alike."""
    blocks = [(layer, list(sites)) for layer, sites in groupby(list(graph)[:_SITES], key=lambda site: site.layer)]
    groups: list[tuple[list[int | None], list]] = []
    for layer, sites in blocks:
        if layer is not None and groups and groups[-1][0][0] is not None and _like(groups[-1][1]) == _like(sites):
            groups[-1][0].append(layer)
        else:
            groups.append(([layer], sites))
    folds = []
    for place, (layers, sites) in enumerate(groups):
        if layers[0] is None:
            head = "before the blocks" if place == 0 else "after the blocks"
        elif len(layers) == 1:
            head = f"blocks.{layers[0]}"
        else:
            head = f"blocks.{layers[0]} to blocks.{layers[-1]}: {len(layers)} alike"
        head += f" ({len(sites)} site{'s' * (len(sites) > 1)}{' each' * (len(layers) > 1)})"
        rows = [
            [
                code(_name(site, layers, graph.n_layers)),
                shape(site.sizes, site.axes),
                "on demand" if site.on_demand else "",
            ]
            for site in sites
        ]
        folds.append(fold(head, table(["site", "shape", ""], rows)))
    more = line(f"{len(graph) - _SITES} more sites: print(model.graph)") if len(graph) > _SITES else Html("")
    return fold(f"{len(graph)} sites", join([*folds, more]), open=True)


def _like(sites: list) -> list[tuple]:
    return [(site.name.split(".", 2)[-1], site.axes, site.sizes, site.on_demand) for site in sites]


def _name(site: Any, layers: list, n_layers: int) -> str:
    """The name. Where all blocks are alike it has a star for the layer: the pattern that captures the site in all of
    them; where some are, an N."""
    if len(layers) == 1:
        return site.name
    return f"blocks.{'*' if len(layers) == n_layers else 'N'}.{site.name.split('.', 2)[-1]}"


def _size(bare: Any) -> str:
    own = list(bare.parameters())  # tied weights are given once
    taken = sum(p.numel() * p.element_size() for p in own)
    return f"{sum(p.numel() for p in own):,} parameters, {n_bytes(taken)}"
