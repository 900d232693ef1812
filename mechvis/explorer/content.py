"""What the page's script reads: one block of JSON per panel, lines of deflated numbers, lines of pictures.

================  ====================================================================================================
chunk             bytes
================  ====================================================================================================
full attention    per (image, layer): shares uint8 `[head query key]`, then largest weights uint16 `[head query]`
read attention    per 32 images: shares uint8 `[image unit key]`, then largest weights uint16 `[image unit]`
latents' maps     per image, its examples in the order of their latents: position of the latent uint32 `[example]`,
                  peak float32 `[example]`, shares of the peak uint8 `[example patch]`
examples          per dictionary, by latent: image uint32, place in the image's chunk uint32, value float32, peak
                  float32, each `[example]`; first example of each latent uint32 `[latent + 1]`; is it one of the
                  strongest images uint8 `[example]`
maps              per image: for each method that has it, int8 `[down across]` and its size float32
================  ====================================================================================================

All numbers are little-endian. An image costs nothing until it is shown, a latent's maps nothing until it is looked at.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechvis.explorer.gather import Gathered
from mechvis.explorer.graph import layout
from mechvis.explorer.look import heads_of
from mechvis.explorer.packing import Chunks, json_block, signed
from mechvis.explorer.panels import Attention, Graph, Latents, Maps, Pictures

READ_IMAGES = 32
"""Images whose read attention shares a chunk."""


@dataclass(kw_only=True)
class Content:
    """The blocks of data of a page."""

    blocks: dict[str, str] = field(default_factory=dict)
    """JSON by id of the block."""
    chunks: Chunks = field(default_factory=Chunks)
    """Deflated numbers."""
    pictures: list[str] = field(default_factory=list)
    """Base64 of each picture; empty: none."""


def content(found: Gathered) -> Content:
    """The blocks of what was gathered."""
    import base64

    made = Content()
    place: dict[str, int] = {}
    if found.pictures is not None:
        place = {name: i for i, name in enumerate(found.pictures.ids)}
        made.blocks["data-images"] = json_block(_images(found.pictures))
        made.pictures = ["" if file is None else base64.b64encode(file).decode() for file in found.pictures.files]
    if found.attention is not None:
        made.blocks["data-attention"] = json_block(attention_block(found.attention, place, made.chunks))
    if found.maps:
        made.blocks["data-maps"] = json_block(maps_block(found.maps, place, made.chunks))
    for i, latents in enumerate(found.latents):
        made.blocks[f"data-latents-{i}"] = json_block(latents_block(latents, place, made.chunks))
    for i, graph in enumerate(found.graphs):
        made.blocks[f"data-graph-{i}"] = json_block(graph_block(graph))
    return made


def coded(column: tuple[str | None, ...]) -> dict[str, Any]:
    """Repeated words as numbers into a list of names; -1: unknown.

    Example:
        >>> coded(("b", "a", None, "b"))
        {'names': ['a', 'b'], 'of': [1, 0, -1, 1]}
    """
    names = sorted({value for value in column if value is not None})
    number = {name: i for i, name in enumerate(names)}
    return {"names": names, "of": [-1 if value is None else number[value] for value in column]}


def _images(pictures: Pictures) -> dict[str, Any]:
    words = {"label": pictures.labels, "prediction": pictures.predictions, "group": pictures.groups}
    found: dict[str, Any] = {"ids": pictures.ids, **{name: coded(column) for name, column in words.items() if column}}
    found["captions"] = pictures.captions or None
    found["numbers"] = {str(name): column for name, column in pictures.numbers.items()}
    return found


def attention_block(attention: Attention, place: dict[str, int], chunks: Chunks) -> dict[str, Any]:
    """Index of the attention; its numbers go to `chunks`."""
    full = [
        [
            chunks.add(attention.patterns[layer][i].tobytes() + attention.largest[layer][i].astype("<u2").tobytes())
            for layer in attention.layers
        ]
        for i in range(len(attention.ids))
    ]
    read = []
    for start in range(0, len(attention.read_ids), READ_IMAGES):
        some = slice(start, start + READ_IMAGES)
        read.append(chunks.add(attention.read[some].tobytes() + attention.read_largest[some].astype("<u2").tobytes()))
    return {
        "layers": attention.layers,
        "heads": attention.heads,
        "units": heads_of(attention),
        "prefix": attention.prefix,
        "grid": attention.grid,
        "readName": attention.read_name,
        "full": {place[name]: lines for name, lines in zip(attention.ids, full, strict=True)},
        "read": read,
        "readImages": READ_IMAGES,
        "images": [place[name] for name in attention.read_ids],
    }


def maps_block(found: list[Maps], place: dict[str, int], chunks: Chunks) -> dict[str, Any]:
    """Index of all maps: methods with their grids, and per image the chunk and which methods it holds."""
    methods: list[dict[str, Any]] = []
    parts: dict[int, list[tuple[int, bytes]]] = {}
    names: set[str] = set()
    for group in found:
        for which, (method, values) in enumerate(zip(group.methods, group.values, strict=True)):
            name, more = method, 2
            while name in names:
                name, more = f"{method} ({more})", more + 1
            names.add(name)
            about = group.about[which] if group.about else group.name
            bytes_of, sizes = signed(values.reshape(len(values), -1))
            negative = bool((values < 0).any())
            methods.append({"name": name, "about": about, "grid": values.shape[1:], "signed": negative})
            for image, map_, size in zip(group.ids, bytes_of, sizes, strict=True):
                packed = map_.tobytes() + np.asarray(size, "<f4").tobytes()
                parts.setdefault(place[image], []).append((len(methods) - 1, packed))
    images = {
        image: [chunks.add(b"".join(data for _, data in own)), [method for method, _ in own]]
        for image, own in sorted(parts.items())
    }
    return {"methods": methods, "images": images}


def latents_block(latents: Latents, place: dict[str, int], chunks: Chunks) -> dict[str, Any]:
    """Index of latents: the list by column, the chunk of examples, and per image the chunk of maps with its latents."""
    n = len(latents.latent)
    image = np.array([place[name] for name in latents.ids], np.int64)[latents.image] if n else np.zeros(0, np.int64)
    order = np.lexsort((latents.latent, image))
    within = np.zeros(n, np.int64)
    images: dict[int, list[Any]] = {}
    starts = np.flatnonzero(np.diff(image[order], prepend=-1)) if n else []
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        own = order[start:stop]
        within[own] = np.arange(len(own))
        data = latents.latent[own].astype("<u4").tobytes() + latents.peak[own].astype("<f4").tobytes()
        images[int(image[own[0]])] = [chunks.add(data + latents.maps[own].tobytes()), len(own)]
    first = np.searchsorted(latents.latent, np.arange(len(latents.columns["latent"]) + 1))
    examples = b"".join(
        [
            image.astype("<u4").tobytes(),
            within.astype("<u4").tobytes(),
            latents.value.astype("<f4").tobytes(),
            latents.peak.astype("<f4").tobytes(),
            first.astype("<u4").tobytes(),
            latents.top.astype(np.uint8).tobytes(),
        ]
    )
    columns: dict[str, Any] = {}
    for name, column in latents.columns.items():
        words = any(isinstance(value, str) for value in column)
        columns[name] = {"words": coded(tuple(column))} if words else {"numbers": list(column)}
    return {
        "name": latents.name,
        "grid": latents.grid,
        "columns": columns,
        "words": dict(latents.words),
        "n": len(latents.columns["latent"]),
        "nExamples": n,
        "examples": chunks.add(examples),
        "images": images,
    }


def graph_block(graph: Graph) -> dict[str, Any]:
    """Components with their places and edges with their numbers."""
    nodes = layout(graph.edges)
    number = {name: i for i, name in enumerate(nodes)}
    return {
        "name": graph.name,
        "nodes": [[node.name, node.kind, node.layer, node.head] for node in nodes.values()],
        "edges": [
            [number[edge.source], number[edge.target], edge.entry, edge.score, int(edge.kept), edge.note]
            for edge in graph.edges
        ],
    }
