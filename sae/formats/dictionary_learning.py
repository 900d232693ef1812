"""dictionary_learning: a folder with `ae.pt` (a pickled state dict) and `config.json` (0.1.0 and git of August 2025
[code]).

Which class it is stands in `config.json` (`trainer.dict_class`); each has its own names and its own rule about `b_dec`:

=======================  ==================================================================  =========================
class                    tensors                                                             `b_dec` taken off first
=======================  ==================================================================  =========================
AutoEncoder              encoder.weight [n,d], encoder.bias, decoder.weight [d,n], bias       yes
AutoEncoderNew           the same, decoder.bias                                              no
GatedAutoEncoder         encoder.weight, gate_bias, mag_bias, r_mag, decoder.weight,          yes
                         decoder_bias
JumpReluAutoEncoder      W_enc [d,n], b_enc, W_dec [n,d], b_dec, threshold [n]                no
AutoEncoderTopK          encoder.*, decoder.weight, b_dec, k, threshold                      yes
BatchTopKSAE             the same                                                            yes
MatryoshkaBatchTopKSAE   W_enc, b_enc, W_dec, b_dec, k, threshold, group_sizes                yes
=======================  ==================================================================  =========================

* A threshold below zero was never estimated. BatchTopK classes are used with theirs; AutoEncoderTopK only if asked
  (`use_threshold=True`), so here it is the k largest, and the threshold is kept in the provenance.
* `AutoEncoder.from_pretrained` makes decoder rows unit (`normalize_decoder=True`); `folded()` does so here. Codes are
  those of the file as it stands, which is `normalize_decoder=False`.
* Training scales rows so that their mean square is one, and scales biases back when it saves: files take rows as they
  are.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechvis import files
from mechvis.errors import BadData, RefusedMethod, ShapeMismatch
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, rows_of_norm_one, sites, thresholds_as_they_are
from sae.formats.checked import Config, Tensors
from sae.formats.express import Exported, exported
from sae.formats.seen import Seen, Told

CONFIG, WEIGHTS = "config.json", "ae.pt"
LINEAR = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE")
PLAIN = ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
BIAS = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
KIND = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "batch_topk",
}
CLASSES = {
    "relu": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "topk": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE",
}
"""What our rules are written as."""


def fits(seen: Seen) -> bool:
    """Is this one?"""
    return seen.has("ae.pt", "ae_*.pt") and isinstance(seen.json(CONFIG).get("trainer"), dict)


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file("ae.pt", "ae_*.pt")
    where = str(place)
    trainer = Config(found=seen.json(CONFIG), where=CONFIG).table("trainer")
    name = trainer.text("dict_class")
    if name not in KIND:
        raise RefusedMethod(f"{where}: dict_class {name[:40]!r} is not read; {', '.join(KIND)} are.")
    tensors = Tensors(found=seen.tensors(place), where=where)
    kind, taken = KIND[name], _weights(name, tensors)
    n, d = taken["W_enc"].shape
    settings: dict[str, Any] = {"n_latents": n, "normalise": "none", "decoder": rows_of_norm_one(taken["W_dec"])}
    settings["centre"] = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    kept: dict[str, Any] = {}
    if kind == "jumprelu":
        settings |= thresholds_as_they_are(n)
        taken["threshold"] = tensors.take("threshold", n).clamp_min(0)
    if kind in ("topk", "batch_topk"):
        known = tensors.number("k") if tensors.has("k") else trainer.whole("k")
        if known != int(known):
            raise BadData(f"k in {where} is {known}, which is not whole.")
        settings |= {"k": fits_k(int(known), n, where), "decoder": "unit"}
        threshold = tensors.number("threshold") if tensors.has("threshold") else -1.0
        if kind == "batch_topk":
            settings["row_limit"] = None
            taken["threshold"] = torch.tensor(max(threshold, -1.0) if threshold >= 0 else -1.0, dtype=torch.float64)
        kept["threshold"] = threshold
    site = trainer.found.get("submodule_name") or (
        f"layer {trainer.found['layer']}" if type(trainer.found.get("layer")) is int else "activations"
    )
    ends = sites(str(site)[:200], None, d, taken["W_dec"].shape[1])
    provenance = {"format": "dictionary_learning", "config": trainer.plain(), **kept}
    tensors.finish("k", "threshold", "group_sizes")
    return built(named(kind)(**settings), ends, taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write `ae.pt` and `config.json`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    e = exported(d, "dictionary_learning", kinds=tuple(CLASSES))
    name = CLASSES[e.kind]
    e = e.recentred(e.kind != "jumprelu")
    trainer: dict[str, Any] = {
        "trainer_class": "",
        "dict_class": name,
        "activation_dim": e.ends.d_in,
        "dict_size": e.n,
        "lm_name": "",
        "layer": 0,
        "submodule_name": e.site,
    }
    if e.k is not None and e.kind in ("topk", "batch_topk"):
        trainer["k"] = e.k
    data = io.BytesIO()
    torch.save(_state(e, name), data)
    folder = files.ensure_writable(path)
    files.write_bytes(folder / WEIGHTS, data.getvalue())
    files.write_json(folder / CONFIG, {"trainer": trainer, "buffer": {}})
    return folder


def _weights(name: str, tensors: Tensors) -> dict[str, Tensor]:
    """Weights and biases by our names."""
    if name in PLAIN:
        W_enc = tensors.take("W_enc", None, None)
        d, n = W_enc.shape
        return {
            "W_enc": W_enc.T.contiguous(),
            "W_dec": tensors.take("W_dec", n, d),
            "b_enc": tensors.take("b_enc", n),
            "b_dec": tensors.take("b_dec", d),
        }
    W_enc = tensors.take("encoder.weight", None, None)
    n, d = W_enc.shape
    taken = {
        "W_enc": W_enc,
        "W_dec": tensors.take("decoder.weight", d, n).T.contiguous(),
        "b_dec": tensors.take(BIAS.get(name, "b_dec"), d),
    }
    if name == "GatedAutoEncoder":
        theirs = {"b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
        return taken | {ours: tensors.take(their, n) for ours, their in theirs.items()}
    return taken | {"b_enc": tensors.take("encoder.bias", n)}


def _state(e: Exported, name: str) -> dict[str, Tensor]:
    t = {key: tensor.float() for key, tensor in e.tensors.items()}
    if e.ends.d_in != e.ends.d_out:
        raise ShapeMismatch("dictionary_learning reads and writes one width.")
    if name == "JumpReluAutoEncoder":
        return {**{key: t[key] for key in ("b_enc", "W_dec", "b_dec", "threshold")}, "W_enc": t["W_enc"].T.contiguous()}
    state = {"encoder.weight": t["W_enc"], "decoder.weight": t["W_dec"].T.contiguous()}
    state[BIAS.get(name, "b_dec")] = t["b_dec"]
    if name == "GatedAutoEncoder":
        return state | {"gate_bias": t["b_gate"], "mag_bias": t["b_mag"], "r_mag": t["r_mag"]}
    state["encoder.bias"] = t["b_enc"]
    if e.kind in ("topk", "batch_topk"):
        threshold = e.source.provenance.get("threshold", -1.0) if e.kind == "topk" else e.threshold
        state["k"] = torch.tensor(e.k, dtype=torch.int)
        state["threshold"] = torch.tensor(-1.0 if threshold is None else float(threshold))
    return state
