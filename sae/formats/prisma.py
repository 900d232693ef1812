"""Prisma (ViT-Prisma 2): `weights.pt` or `n_images_*.pt`, with `config.json` or the configuration pickled inside.

`W_enc [d,n]`, `b_enc`, `W_dec [n,d]`, `b_dec`; gated `b_gate`, `b_mag`, `r_mag` in place of `b_enc`; transcoders also
`b_dec_out [d]` and perhaps `W_skip [d,d]`. What the files mean [code]:

* x <- (x - μ) / (σ + 1e-5), σ unbiased, for `normalize_activations="layer_norm"`, which is the default; on the way back
  times σ (without 1e-5) plus μ. `constant_norm_rescale` is 'token_norm', `none` is none. `expected_average_only_in` is
  refused: its factor is in no file.
* `b_dec` is taken off before encoding, in autoencoders and in transcoders (whose `b_dec_out` is what is written).
* A transcoder's output is given the mean and σ of its *input* ('input_norm'). It is read as it was trained, with a
  warning, for what was read says nothing about the norm of what is written. With a skip connection, which Prisma
  applies to raw rows before that, the file is refused.

Files are pickles, and of configuration objects at that: they are read by `sae.formats.pickles`, which runs nothing.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from mechvis import files
from mechvis.errors import BadData, MechvisWarning, RefusedMethod
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, rows_of_norm_one, sites
from sae.formats.checked import Config, Tensors
from sae.formats.express import exported
from sae.formats.machine import Inert
from sae.formats.seen import Seen, Told

CONFIG, WEIGHTS = "config.json", "weights.pt"
FILES = (WEIGHTS, "n_images_*.pt", "*.pt")
NORMS = {"none": "none", "constant_norm_rescale": "token_norm", "layer_norm": "layer_norm"}
MARKS = ("layer_subtype", "hook_point_layer", "cls_token_only", "use_patches_only", "activation_fn_str")
"""Settings that only Prisma's configuration has."""


def fits(seen: Seen) -> bool:
    """Is this one?"""
    if not seen.has(WEIGHTS, "n_images_*.pt") and not (seen.one and seen.has("*.pt")):
        return False
    found = seen.pickled(seen.file(*FILES))
    if isinstance(found, dict) and "cfg" in found and "state_dict" in found:
        return True
    settings = seen.json(CONFIG)
    return any(mark in settings for mark in MARKS)


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file(*FILES)
    where, config = str(place), _config(seen, place)
    tensors = Tensors(found=seen.tensors(place), where=where)
    W_enc = tensors.take("W_enc", None, None)
    d_in, n = W_enc.shape
    transcodes = tensors.has("b_dec_out") or config.flag("is_transcoder", False)
    W_dec = tensors.take("W_dec", n, None if transcodes else d_in)
    d_out = W_dec.shape[1]
    architecture = config.text("architecture", "standard")
    if architecture not in ("standard", "gated"):
        raise RefusedMethod(f"{where}: architecture {architecture[:40]!r} is not read; standard and gated are.")
    norm = config.text("normalize_activations", "layer_norm")
    if norm not in NORMS:
        raise RefusedMethod(f"{where}: normalize_activations={norm[:40]!r} is not read; {', '.join(NORMS)} are.")
    settings: dict[str, Any] = {"n_latents": n, "normalise": NORMS[norm], "centre": True}
    settings["decoder"] = rows_of_norm_one(W_dec)
    taken = {"W_enc": W_enc.T.contiguous(), "W_dec": W_dec, "b_dec": tensors.take("b_dec", d_in)}
    biases = ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",)
    taken |= {name: tensors.take(name, n) for name in biases}
    kind = "gated" if architecture == "gated" else "relu"
    activation = config.text("activation_fn_str", "relu")
    if activation == "topk" and kind == "relu":
        known = config.table("activation_fn_kwargs").whole("k", told.k)
        kind, settings["k"], settings["decoder"] = "topk", fits_k(known, n, where), "unit"
    elif activation != "relu":
        raise RefusedMethod(f"{where}: activation_fn_str={activation[:40]!r} is not read with {architecture}.")
    if transcodes:
        # b_dec is taken off what is read: into the encoder's biases; then b_dec is what is written.
        moved = taken["W_enc"] @ taken["b_dec"]
        for name in {"b_enc", "b_gate", "b_mag"} & set(taken):
            taken[name] = taken[name] - (moved * taken["r_mag"].exp() if name == "b_mag" else moved)
        taken["b_dec"] = tensors.take("b_dec_out", d_out)
        settings["centre"] = False
        if tensors.has("W_skip"):
            settings["skip"], taken["W_skip"] = True, tensors.take("W_skip", d_out, d_in)
        _transcoder(settings, where)
    subtype, layer = config.text("layer_subtype", "hook_resid_post"), config.found.get("hook_point_layer")
    site = f"blocks.{layer}.{subtype}" if type(layer) is int else "activations"
    out = "written"
    if type(config.found.get("out_hook_point_layer")) is int:
        out = f"blocks.{config.found['out_hook_point_layer']}.{config.text('layer_out_subtype', 'hook_mlp_out')}"
    ends = sites(site, out if transcodes else None, d_in, d_out)
    tokens = "cls" if config.flag("cls_token_only", False) else "all"
    tokens = "patches" if config.flag("use_patches_only", False) else tokens
    provenance = {"format": "prisma", "tokens": tokens, "config": config.plain()}
    tensors.finish()
    return built(named(kind)(**settings), ends, taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write `weights.pt` (a bare state dict) and `config.json`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    e = exported(d, "prisma", kinds=("relu", "gated", "topk"), rows=("token_norm", "layer_norm"))
    e = e.recentred(True)
    tensors = dict(e.tensors)
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    layer, subtype = 0, e.site
    parts = e.site.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdigit():
        layer, subtype = int(parts[1]), parts[2]
    if e.n % e.ends.d_in:
        raise RefusedMethod(
            "prisma has a whole number of latents per column "
            f"(expansion_factor); {e.n} latents of {e.ends.d_in} are not."
        )
    config: dict[str, Any] = {
        "architecture": "gated" if e.kind == "gated" else "standard",
        "d_in": e.ends.d_in,
        "d_sae": e.n,
        "expansion_factor": e.n // e.ends.d_in,
        "activation_fn_str": "topk" if e.kind == "topk" else "relu",
        "activation_fn_kwargs": {"k": e.k} if e.kind == "topk" else {},
        "normalize_activations": {ours: theirs for theirs, ours in NORMS.items()}[e.rows],
        "hook_point_layer": layer,
        "layer_subtype": subtype,
        "cls_token_only": e.source.provenance.get("tokens") == "cls",
        "use_patches_only": e.source.provenance.get("tokens") == "patches",
        "is_transcoder": False,
    }
    data = io.BytesIO()
    torch.save(tensors, data)
    folder = files.ensure_writable(path)
    files.write_bytes(folder / WEIGHTS, data.getvalue())
    files.write_json(folder / CONFIG, config)
    return folder


def _config(seen: Seen, place: Path) -> Config:
    """The configuration inside the file, else beside it.

    Raises:
        BadData: there is none, so nobody knows how rows are scaled.
    """
    found = seen.pickled(place)
    inside = found.get("cfg") if isinstance(found, dict) else None
    if isinstance(inside, Inert):
        return Config(found=inside.state, where=f"cfg in {place}")
    if isinstance(inside, dict):
        return Config(found=inside, where=f"cfg in {place}")
    if beside := seen.json(CONFIG):
        return Config(found=beside, where=str(seen.folder / CONFIG))
    raise BadData(
        f"{place} comes without its configuration: neither inside nor as {CONFIG} beside it. How rows are scaled and "
        "which rule finds codes stands there; take it from the page where the file is from."
    )


def _transcoder(settings: dict[str, Any], where: str) -> None:
    """How a transcoder's rows are scaled."""
    if settings["normalise"] == "none":
        return
    if settings["normalise"] != "layer_norm" or settings.get("skip"):
        raise RefusedMethod(
            f"{where}: a transcoder that scales rows by their own norm, with a skip connection from raw rows or with "
            "constant_norm_rescale, is not read."
        )
    settings["normalise"] = "input_norm"
    warnings.warn(
        f"{where}: this transcoder gives its output the mean and standard deviation of its input, as Prisma trained "
        "it. What is read does not know the norm of what is written, so judge it by its error before you use it.",
        MechvisWarning,
        stacklevel=4,
    )
