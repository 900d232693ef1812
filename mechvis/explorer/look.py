"""Images as a model sees them: small pictures, predictions, and where its heads look.

1. Images go through the model in batches; every batch gives pictures, logits, and for each head the attention of the
   tokens that are read (CLS; the mean over all tokens where all are read).
2. Full patterns are `heads x tokens x tokens` per layer and image, too many for a file with a thousand images. The
   first batch says how many bytes an image costs once packed, and as many images as fit into `full_bytes` get theirs.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import reduce

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, UnsupportedModel
from mechvis.explorer.packing import shares
from mechvis.explorer.panels import Attention, Pictures
from mechvis.explorer.pictures import colours, picture
from mechvis.labels import with_model_classes
from mechvis.progress import track

FULL_BYTES = 6_000_000
"""What full patterns may cost in the file, by default."""


def look(
    model: Any,
    images: ImageSet,
    *,
    n: int | None = None,
    layers: Sequence[int] | None = None,
    full_bytes: int = FULL_BYTES,
    thumbnail: int = 64,
    batch_size: int = 32,
    progress: bool = True,
) -> tuple[Pictures, Attention]:
    """Pictures and attention of images.

    Args:
        model: a `HookedViT`; a CLIP model's `vision` tower or `classifier`.
        images: the images, with labels and groups where they are known.
        n: how many, from the first on; None: all.
        layers: whose attention; None: all.
        full_bytes: what full patterns may cost in the file, in bytes; the others keep the tokens that are read.
        thumbnail: longest side of a picture, in pixels.
        batch_size: images per forward.
        progress: show a progress bar.

    Returns:
        Pictures, and attention.

    Raises:
        UnsupportedModel: a model that sees no images.
        OutOfRange: a layer, a number of images or a size that cannot be.
        BadData: not an `ImageSet`; labels of which the model knows nothing.

    Example:
        >>> pictures, attention = look(model, images, n=100)                                       # doctest: +SKIP
        >>> attention.grid                                                                         # doctest: +SKIP
        (8, 8)
    """
    if not isinstance(images, ImageSet):
        raise BadData(f"images for an explorer are an ImageSet (mechvis.data), got {type(images).__name__}.")
    parts = getattr(model, "parts", None)
    if parts is None or parts.modality != "image":
        raise UnsupportedModel("an explorer looks at images: give a HookedViT, or clip.vision or clip.classifier(...).")
    n_layers = len(parts.blocks)
    layers = tuple(range(n_layers)) if layers is None else tuple(layers)
    if strange := [layer for layer in layers if not 0 <= layer < n_layers]:
        raise OutOfRange(f"layer {strange[0]} does not exist: there are 0 to {n_layers - 1}.")
    if n is not None and n < 1:
        raise OutOfRange(f"n={n} images; at least 1 is needed.")
    if thumbnail < 8 or batch_size < 1 or full_bytes < 0:
        raise OutOfRange(
            f"thumbnail={thumbnail} (at least 8), batch_size={batch_size} (at least 1), full_bytes={full_bytes} (at "
            "least 0)."
        )
    chosen = images if n is None or n >= len(images) else images[:n]
    known = with_model_classes(chosen, model)
    sites = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    files: list[bytes] = []
    outputs: list[torch.Tensor] = []
    read: list[np.ndarray] = []
    full: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    n_full, grid = None, None
    with track(len(known), "looking", " images", show=progress) as bar:
        for start in range(0, len(known), batch_size):
            batch = known[start : start + batch_size]
            pixels = batch.pixels_for(model.preprocess) if model.preprocess is not None else batch.pixels
            with torch.no_grad():
                run = model.run(pixels, capture=sites)
            grid = parts.at_size(tuple(pixels.shape[2:])).grid
            n_tokens = len(parts.prefix) + grid[0] * grid[1]
            patterns = {
                layer: _pattern(run.cache[site], n_tokens, layer) for layer, site in zip(layers, sites, strict=True)
            }
            files += [picture(image, thumbnail) for image in colours(pixels, model.preprocess)]
            outputs.append(run.output.detach().double().cpu())
            read.append(np.concatenate([_of_reads(pattern, parts.reads) for pattern in patterns.values()], 1))
            if n_full is None:
                n_full = _affordable(patterns, full_bytes) if layers else 0
            for layer, pattern in patterns.items():
                if start < n_full:
                    full[layer].append(pattern[: n_full - start])
            bar.update(len(batch))
    n_full = min(n_full or 0, len(known))
    packed = {layer: shares(np.concatenate(some)) for layer, some in full.items() if some}
    rows, largest = shares(np.concatenate(read))
    attention = Attention(
        layers=layers if packed or layers else (),
        heads=tuple(parts.blocks[layer].attn.n_heads for layer in layers),
        prefix=tuple(parts.prefix),
        grid=grid,
        ids=known.ids[:n_full],
        patterns={layer: found for layer, (found, _) in packed.items()},
        largest={layer: top for layer, (_, top) in packed.items()},
        read_ids=known.ids,
        read=rows,
        read_largest=largest,
        read_name=_read_name(parts),
    )
    return _pictures(known, model, files, torch.cat(outputs)), attention


def _pattern(pattern: torch.Tensor, n_tokens: int, layer: int) -> np.ndarray:
    """Attention of one layer, float32 `[image head query key]`."""
    if pattern.ndim != 4 or tuple(pattern.shape[2:]) != (n_tokens, n_tokens):
        raise UnsupportedModel(
            f"the attention of layer {layer} is {list(pattern.shape)}, not between {n_tokens} tokens; leave the layer "
            "out with layers=."
        )
    return pattern.detach().float().clamp(0, 1).cpu().numpy()


def _of_reads(pattern: np.ndarray, reads: Any) -> np.ndarray:
    """What the tokens that are read attend to, `[image head key]`."""
    rows = pattern[:, :, list(reads)] if isinstance(reads, tuple) else pattern
    return reduce(rows, "image head query key -> image head key", "mean")


def _read_name(parts: Any) -> str:
    if not isinstance(parts.reads, tuple):
        return "mean of all tokens"
    names = [parts.prefix[token] if token < len(parts.prefix) else f"token {token}" for token in parts.reads]
    return names[0] if len(names) == 1 else f"mean of {', '.join(names)}"


def _affordable(patterns: dict[int, np.ndarray], budget: int) -> int:
    """How many images' patterns fit, judged by at most four of the first batch."""
    some = min(4, len(next(iter(patterns.values()))))
    cost = 0
    for pattern in patterns.values():
        found, _ = shares(pattern[:some])
        cost += sum(len(zlib.compress(image.tobytes(), 6)) for image in found)
    return int(budget / (4 / 3 * cost / some))


def _pictures(known: ImageSet, model: Any, files: list[bytes], output: torch.Tensor) -> Pictures:
    """The gallery; predictions where the output are logits of named classes or of the labels' classes."""
    names = model.parts.class_names or known.class_names
    told: dict[str, Any] = {}
    if known.labels is not None:
        told["labels"] = tuple(
            known.class_names[label] if label < len(known.class_names) else str(label) for label in known.labels
        )
    if output.ndim == 2 and names and output.shape[1] == len(names):
        chance = output.softmax(1)
        told["predictions"] = tuple(names[i] for i in output.argmax(1).tolist())
        told["numbers"] = {"confidence": chance.max(1).values.numpy()}
        if known.labels is not None and int(known.labels.max()) < output.shape[1]:
            own = torch.as_tensor(known.labels)[:, None]
            rest = output.scatter(1, own, -torch.inf).max(1).values
            told["numbers"]["margin"] = (output.gather(1, own)[:, 0] - rest).numpy() if output.shape[1] > 1 else None
            told["numbers"] = {name: column for name, column in told["numbers"].items() if column is not None}
    if known.groups is not None:
        told["groups"] = tuple(str(group) for group in known.groups)
    if known.captions is not None:
        told["captions"] = tuple(known.captions)
    return Pictures(ids=tuple(known.ids), files=tuple(files), **told)


def heads_of(attention: Attention) -> list[str]:
    """Names of the units of `attention.read`.

    Example:
        >>> heads_of(attention)[:2]                                                                # doctest: +SKIP
        ['L0H0', 'L0H1']
    """
    return [
        f"L{layer}H{head}"
        for layer, heads in zip(attention.layers, attention.heads, strict=True)
        for head in range(heads)
    ]
