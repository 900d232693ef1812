"""visaebench: `sae.pt` or `model.safetensors`, with `config.json {activation, input_dim, hidden_dim, k, threshold}`.

`encoder.weight [n,d]`, `encoder.bias`, `decoder.weight`, `decoder.bias`; codes are ReLU(W_enc (x - b) + b_enc) over a
threshold (`batch_topk`), the k largest (`topk`) or all (`relu`) [code]. Its released files have `decoder.weight` as
[n,d], nn.Linear would have [d,n]: the shape decides; where n = d it cannot, and the file is refused. A file with the
names of overcomplete is read as one (`sae.formats.overcomplete`).

Whether `decoder.bias` is taken off before encoding stands in `apply_b_dec_to_input` if at all; without it, it is not.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechvis import files
from mechvis.errors import RefusedMethod, ShapeMismatch
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, rows_of_norm_one, sites
from sae.formats.checked import Config, Tensors
from sae.formats.express import exported, needed_threshold
from sae.formats.seen import Seen, Told

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ACTIVATIONS = {"batch_topk": "batch_topk", "batchtopk": "batch_topk", "topk": "topk", "relu": "relu"}


def fits(seen: Seen) -> bool:
    """Is this one?"""
    config = seen.json(CONFIG)
    return seen.has(WEIGHTS, "sae.pt") and "input_dim" in config and "hidden_dim" in config


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file(WEIGHTS, "sae.pt")
    where = str(place)
    config = Config(found=seen.json(CONFIG), where=str(seen.folder / CONFIG))
    tensors = Tensors(found=seen.tensors(place), where=where)
    activation = config.text("activation").lower()
    if activation not in ACTIVATIONS:
        raise RefusedMethod(
            f"{config.where}: activation {activation[:40]!r} is not read; {', '.join(ACTIVATIONS)} are."
        )
    kind, d, n = ACTIVATIONS[activation], config.whole("input_dim"), config.whole("hidden_dim")
    if tensors.has("dictionary._weights"):
        from sae.formats import overcomplete

        threshold = config.real("threshold") if kind == "batch_topk" else None
        known = Told(k=config.whole("k") if kind != "relu" else None, threshold=threshold)
        return overcomplete.read(seen, known if kind != "relu" else Told(architecture="relu"))
    W_dec = oriented(tensors.take("decoder.weight", None, None), n, d, "decoder.weight", where)
    taken: dict[str, Tensor] = {
        "W_enc": tensors.take("encoder.weight", n, d),
        "b_enc": tensors.take("encoder.bias", n),
        "W_dec": W_dec,
        "b_dec": tensors.take("decoder.bias", d) if tensors.has("decoder.bias") else torch.zeros(d, dtype=W_dec.dtype),
    }
    settings: dict[str, Any] = {"n_latents": n, "normalise": "none", "decoder": rows_of_norm_one(W_dec)}
    settings["centre"] = config.flag("apply_b_dec_to_input", False)
    if kind != "relu":
        settings |= {"k": fits_k(config.whole("k", told.k), n, config.where), "decoder": "unit"}
    if kind == "batch_topk":
        settings["row_limit"] = None
        threshold = told.threshold if told.threshold is not None else config.real("threshold")
        taken["threshold"] = torch.tensor(max(threshold, -1.0), dtype=torch.float64)
    ends = sites(config.text("site", "activations"), None, d, d)
    provenance = {"format": "visaebench", "config": config.plain()}
    tensors.finish("threshold", "running_threshold", "k")
    return built(named(kind)(**settings), ends, taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write `model.safetensors` (decoder as [n,d]) and `config.json`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    from safetensors.torch import save

    e = exported(d, "visaebench", kinds=("relu", "topk", "batch_topk")).recentred(False)
    if e.n == e.ends.d_in:
        raise RefusedMethod("visaebench tells the decoder's orientation by its shape; n = d leaves it open.")
    t = e.tensors
    tensors = {
        "encoder.weight": t["W_enc"],
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"],
        "decoder.bias": t["b_dec"],
    }
    config: dict[str, Any] = {
        "activation": e.kind,
        "input_dim": e.ends.d_in,
        "hidden_dim": e.n,
        "k": e.k,
        "threshold": needed_threshold(e, "visaebench") if e.kind == "batch_topk" else None,
        "apply_b_dec_to_input": False,
        "site": e.site,
    }
    folder = files.ensure_writable(path)
    files.write_bytes(folder / WEIGHTS, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    files.write_json(folder / CONFIG, config)
    return folder


def oriented(weight: Tensor, n: int, d: int, name: str, where: str) -> Tensor:
    """A weight as `[latent d]`, whichever way it lies in the file.

    Raises:
        ShapeMismatch: neither [n, d] nor [d, n]; or n = d, where the shape cannot tell.
    """
    if n == d:
        raise ShapeMismatch(f"{name} in {where} is square ({n}), so its shape does not say which axis latents are on.")
    if tuple(weight.shape) == (n, d):
        return weight
    if tuple(weight.shape) == (d, n):
        return weight.T.contiguous()
    raise ShapeMismatch(f"{name} in {where} is {list(weight.shape)}; it should be [{n}, {d}] or [{d}, {n}].")
