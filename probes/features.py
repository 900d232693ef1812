"""Features to read from: what chosen sites say of every image, for chosen tokens, in one pass over the data.

Every read-out of this package starts here. A feature set is named by a site and a choice of tokens
(`blocks.3.hook_resid_post:cls`), and is a matrix with one row per image (per image and patch for `patches`):

============  ==================================================================================
choice        the rows
============  ==================================================================================
`cls`         the class token (the first prefix token)
`mean`        mean over the patches
`registers`   mean over the registers (prefix tokens after the first)
`all`         mean over all tokens
`cls+mean`    class token and mean of the patches, side by side
`read`        what the model reads: the class token where it reads one, else the mean of what it reads
`patches`     every patch: `[image*patch d]`
============  ==================================================================================

Sites without tokens (`hook_pooled`, `hook_embedding`, `hook_logits`) have one row per image and no choice.

All sites are filled by one forward pass, which stops at the last of them. In memory by default; `out=` keeps the
matrices as `.npy` files that are read from disk as they are used, and continues where an interrupted call stopped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import files
from mechvis.data.images import ImageSet
from mechvis.engine import budget_bytes, free_memory
from mechvis.errors import (
    BadData,
    NotFinite,
    OutOfMemory,
    ResultMismatch,
    unknown,
)
from mechvis.labels import with_model_classes
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.store.forward import images_at_once, reader
from mechvis.store.rows import one_image, rows_at

Choice = Literal["cls", "mean", "registers", "all", "cls+mean", "read", "patches"]
CHOICES = ("cls", "mean", "registers", "all", "cls+mean", "read", "patches")

MANIFEST = "features.json"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Features(Mapping[str, np.ndarray]):
    """Matrices of features by name, with what is known of the images."""

    rows: dict[str, np.ndarray]
    """`[image d]` by name (`site:choice`, or the site alone), for `patches` `[image*patch d]`, images in order."""
    sites: dict[str, str]
    """Site of each name."""
    layers: dict[str, int | None]
    """Layer of each name; None for sites after the last block."""
    n_images: int
    """How many images."""
    grid: tuple[int, int] | None = None
    """Patches (down, across)."""
    labels: np.ndarray | None = None
    """Class index per image, int64 `[image]`."""
    class_names: tuple[str, ...] = ()
    """Name of each class index."""
    groups: np.ndarray | None = None
    """Group per image."""
    ids: tuple[str, ...] = ()
    """Name of each image."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Anything else that is known per image."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, images, versions."""

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.rows:
            raise unknown("features", name, self.rows)
        return self.rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, images: np.ndarray | slice) -> "Features":
        """The same for some of the images, by positions or a bool mask, in that order.

        Raises:
            OutOfRange: a position that is none.
            BadData: no image.
        """
        chosen = np.arange(self.n_images)[images]
        if not len(chosen):
            raise BadData("no image is left in this choice of features.")

        def cut(array: np.ndarray) -> np.ndarray:
            each = len(array) // self.n_images
            if each == 1:
                return array[chosen]
            return array.reshape(self.n_images, each, -1)[chosen].reshape(len(chosen) * each, -1)

        return replace(
            self,
            rows={name: cut(array) for name, array in self.rows.items()},
            n_images=len(chosen),
            labels=None if self.labels is None else self.labels[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            ids=tuple(self.ids[i] for i in chosen),
            columns={name: column[chosen] for name, column in self.columns.items()},
        )

    def target(self, name: str | None = None) -> np.ndarray:
        """What a probe is to read, per image: the labels, or a column by name (`group` for the groups).

        Raises:
            BadData: the images have no labels.
            UnknownName: no such column.
        """
        if name is None or name == "label":
            if self.labels is None:
                raise BadData("the images have no labels. Give class folders, a metadata table, or target=.")
            return self.labels
        known = {**self.columns, **({} if self.groups is None else {"group": self.groups})}
        if name not in known:
            raise unknown("column", name, ["label", *known])
        return known[name]

    def per_row(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values per image, repeated for each row of a matrix (patches: every patch of its image)."""
        return np.repeat(values, len(self[name]) // self.n_images, axis=0)

    def __repr__(self) -> str:
        shown = [f"  {name} {list(array.shape)}" for name, array in list(self.rows.items())[:12]]
        more = f"\n  and {len(self) - 12} more" if len(self) > 12 else ""
        return f"Features of {self.n_images} images\n" + "\n".join(shown) + more


def collect(
    model: Any,
    images: Any,
    sites: str | Sequence[str] = "blocks.*.hook_resid_post",
    *,
    tokens: Choice | Sequence[Choice] = "read",
    out: str | Path | None = None,
    dtype: str = "float32",
    budget: str | int | None = None,
    progress: bool = True,
) -> Features:
    """Run images through a model once and keep what some sites say.

    Args:
        model: a wrapped image tower.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        sites: names or patterns; heads and other extra axes are put side by side (`head d_head`).
        tokens: one choice or several, see the module.
        out: a folder to keep the matrices in; for more than fits into memory.
        dtype: `float32`, `float64` or `float16` of the matrices. Sums over tokens are taken in the model's own type.
        budget: memory for a forward pass, e.g. `"2GB"`.
        progress: show a progress bar.

    Returns:
        Features: a mapping from name to matrix.

    Raises:
        UnknownSite: a pattern matches nothing.
        UnknownName: no such choice of tokens or dtype.
        BadData: tokens that the model or the site does not have.
        NotFinite: NaN or Inf; names site and image.
        OutOfMemory: the matrices do not fit into memory; says how much they need and to use `out`.
        ResultMismatch: the folder holds features of something else.

    Example:
        >>> features = collect(model, images, tokens=["cls", "mean"])                  # doctest: +SKIP
        >>> features["blocks.3.hook_resid_post:cls"].shape                             # doctest: +SKIP
        (512, 128)
    """
    choices = [tokens] if isinstance(tokens, str) else list(tokens)
    for choice in choices:
        if choice not in CHOICES:
            raise unknown("choice of tokens", choice, CHOICES)
    if dtype not in ("float16", "float32", "float64"):
        raise unknown("dtype", dtype, ("float16", "float32", "float64"))
    if isinstance(images, ImageSet):
        # Counted as the model counts its classes, where they are the same classes; a probe may read others.
        with suppress(BadData):
            images = with_model_classes(images, model)
    read, first = reader(model, images), one_image(model, images)
    found = rows_at(model, first, sites, n_images=len(images), tokens="all", dtype=None, seed=0)
    parts, graph = model._for_size(tuple(first.shape[2:]))
    picks: dict[str, tuple[str, Choice | None]] = {}
    for site in found:
        if "key" in site.axes or "query" in site.axes:
            raise BadData(f"{site.name} is about pairs of tokens; features are read from sites with one token axis.")
        if site.token_axis is None:
            picks[site.name] = (site.name, None)
        else:
            picks |= {f"{site.name}:{choice}": (site.name, choice) for choice in choices}
    batch = images_at_once(model, first, found, budget_bytes(budget, model.device))
    example = _rows(model, parts, first, picks)
    shapes = {name: (len(images) * array.shape[0], array.shape[1]) for name, array in example.items()}
    done, matrices = _matrices(out, shapes, dtype, {"model": model.fingerprint, "images": _identity(images)})
    show = track(len(images), "features", " images", show=progress, done=done)
    with show as bar:
        for start in range(done, len(images), batch):
            part = np.arange(start, min(start + batch, len(images)))
            for name, rows in _rows(model, parts, read(part), picks).items():
                each = len(rows) // len(part)
                if not np.isfinite(rows).all():
                    bad = int(part[int((~np.isfinite(rows)).any(1).argmax()) // each])
                    raise NotFinite(f"{name}: NaN or Inf at image {bad}. Look at the image, and at earlier sites.")
                matrices[name][start * each : (start + len(part)) * each] = rows
            if out is not None:
                _mark(Path(out), matrices, int(part[-1]) + 1)
            bar.update(len(part))
    known = images if isinstance(images, ImageSet) else None
    return Features(
        rows=matrices,
        sites={name: site for name, (site, _) in picks.items()},
        layers={name: _layer(graph, site) for name, (site, _) in picks.items()},
        n_images=len(images),
        grid=parts.grid,
        labels=None if known is None else known.labels,
        class_names=() if known is None else known.class_names,
        groups=None if known is None else known.groups,
        ids=tuple(f"image {i}" for i in range(len(images))) if known is None else known.ids,
        columns={} if known is None else known.columns,
        provenance=provenance(
            model=model, images=known, features={"tokens": choices, "sites": [s.name for s in found]}
        ),
    )


def _layer(graph: Any, site: str) -> int | None:
    layer = graph[site].layer
    return layer if isinstance(layer, int) and layer >= 0 and site.startswith("blocks.") else None


def _rows(
    model: Any, parts: Any, pixels: Tensor, picks: Mapping[str, tuple[str, Choice | None]]
) -> dict[str, Float[np.ndarray, "row d"]]:
    """The matrices of one batch."""
    wanted = list(dict.fromkeys(site for site, _ in picks.values()))
    run = model.run(pixels.to(model.device, model.dtype), capture=wanted, stop_when_captured=True, check_finite=False)
    chosen = {name: _choose(parts, run.cache[site], choice, site) for name, (site, choice) in picks.items()}
    # numpy has no bfloat16.
    return {name: (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy() for name, x in chosen.items()}


def _choose(parts: Any, value: Tensor, choice: Choice | None, site: str) -> Tensor:
    """`[row token ...]` to `[row d]` by a choice of tokens."""
    if choice is None:
        return value.flatten(1)
    value = value.flatten(2)
    prefix = len(parts.prefix)
    if choice == "read":
        choice = "all"
        if isinstance(parts.reads, tuple):
            value = value[:, list(parts.reads)]
        elif prefix and parts.reads is None and parts.pooling is None and value.shape[1] == parts.n_tokens:
            choice = "mean"
    needed = {"cls": 1, "cls+mean": 1, "registers": 2}.get(choice, 0)
    if prefix < needed:
        raise BadData(
            f"tokens={choice!r}: this model's tokens before the patches are {', '.join(parts.prefix) or 'none'}. "
            "Use tokens='mean', 'all' or 'read'."
        )
    if choice != "all" and value.shape[1] != parts.n_tokens and choice != "read":
        raise BadData(f"{site} has {value.shape[1]} tokens, the stream {parts.n_tokens}: use tokens='all' there.")
    patches = value[:, prefix:]
    match choice:
        case "cls":
            return value[:, 0]
        case "mean":
            return patches.mean(1)
        case "registers":
            return value[:, 1:prefix].mean(1)
        case "cls+mean":
            return torch.cat([value[:, 0], patches.mean(1)], dim=1)
        case "patches":
            return patches.flatten(0, 1)
        case _:
            return value.mean(1)


# where the matrices live


def _identity(images: Any) -> str:
    if isinstance(images, ImageSet):
        return images.fingerprint
    return files.checksum(images.detach().cpu().float().numpy().tobytes())[:16]


def _matrices(
    out: str | Path | None, shapes: dict[str, tuple[int, int]], dtype: str, about: dict[str, str]
) -> tuple[int, dict[str, np.ndarray]]:
    """Images that are done already, and the matrices to fill."""
    if out is None:
        needed = sum(rows * width for rows, width in shapes.values()) * np.dtype(dtype).itemsize
        if needed > 0.7 * free_memory():
            raise OutOfMemory(
                f"the features need {needed / 1e9:.1f} GB and {free_memory() / 1e9:.1f} GB are free. Pass out=FOLDER "
                "to keep them on disk, fewer sites or tokens, or dtype='float16'."
            )
        return 0, {name: np.empty(shape, dtype) for name, shape in shapes.items()}
    folder = files.ensure_writable(out)
    plan = {**about, "dtype": dtype, "matrices": {name: list(shape) for name, shape in shapes.items()}}
    if (folder / MANIFEST).exists():
        there = files.read_json(folder / MANIFEST)
        if there.get("plan") != json.loads(files.canonical_json(plan)):
            raise ResultMismatch(
                f"{folder} holds features of another model, other images or other sites. Use a new one."
            )
        matrices = {name: np.load(folder / _file(name), mmap_mode="r+") for name in shapes}
        return int(there["done"]), matrices
    matrices = {
        name: np.lib.format.open_memmap(folder / _file(name), mode="w+", dtype=dtype, shape=shape)
        for name, shape in shapes.items()
    }
    files.write_json(folder / MANIFEST, {"format": "mechvis.features", "version": 1, "plan": plan, "done": 0})
    return 0, matrices


def _file(name: str) -> str:
    return f"{files.safe_name(name)}.npy"


def _mark(folder: Path, matrices: dict[str, np.ndarray], done: int) -> None:
    """What is on disk up to here counts; rows after it are computed again."""
    for matrix in matrices.values():
        matrix.flush()
    content = files.read_json(folder / MANIFEST)
    files.write_json(folder / MANIFEST, {**content, "done": done})
