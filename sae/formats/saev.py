"""saev: one file, a JSON line with the configuration and then a state dict of torch (schemas 1 and 2 [code]).

`W_enc [d,n]`, `W_dec [n,d]`, `b_enc`, `b_dec`; the activation is `Relu`, `TopK` or `BatchTopK`, the latter two the k
largest entries of every row at inference, with their sign (`sae.formats.fixed.SignedTopK`): saev takes no ReLU.
`b_dec` is not taken off before encoding. Older versions stored W_enc as a view of W_dec, so that one overwrote the
other when their own code loaded it; here every tensor is a copy of its own bytes, and a W_enc that is exactly W_decᵀ
is warned about. Files of later schemas are read if they have the same fields.
"""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from mechvis import files
from mechvis.errors import MechvisWarning, RefusedMethod, StoreCorrupt
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, rows_of_norm_one, sites
from sae.formats.checked import Config, Tensors
from sae.formats.express import exported
from sae.formats.pickles import load_pt, tensors_in
from sae.formats.seen import Seen, Told

LONGEST_HEADER = 2**20
"""Bytes of the JSON line."""


def fits(seen: Seen) -> bool:
    """Is this one?"""
    if not seen.has("*.pt"):
        return False
    with seen.file("*.pt").open("rb") as file:
        return file.read(1) == b"{"


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file("*.pt")
    where = str(place)
    data = place.read_bytes()
    line, _, rest = data.partition(b"\n")
    try:
        header = json.loads(line) if len(line) < LONGEST_HEADER else None
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{where} does not begin with a line of JSON, so saev did not write it.") from error
    if not isinstance(header, dict):
        raise StoreCorrupt(f"{where} does not begin with a JSON object, so saev did not write it.")
    outer = Config(found=header, where=where)
    config = outer.table("cfg") if "cfg" in header else outer
    tensors = Tensors(found=tensors_in(load_pt(rest, name=where)), where=where)
    W_enc = tensors.take("W_enc", None, None)
    d, n = W_enc.shape
    taken = {
        "W_enc": W_enc.T.contiguous(),
        "b_enc": tensors.take("b_enc", n),
        "W_dec": tensors.take("W_dec", n, d),
        "b_dec": tensors.take("b_dec", d),
    }
    if torch.equal(taken["W_enc"], taken["W_dec"]):
        warnings.warn(
            f"{where}: its encoder is exactly its decoder. Older versions of saev overwrote one with the other; look "
            "at its error before you use it.",
            MechvisWarning,
            stacklevel=4,
        )
    activation, k = _activation(outer, config)
    settings: dict[str, Any] = {"n_latents": n, "normalise": "none", "centre": False}
    kind = "relu"
    if activation == "Relu":
        settings["decoder"] = rows_of_norm_one(taken["W_dec"])
    elif activation in ("TopK", "BatchTopK"):
        kind = "signed_topk"
        k = min(k, n) if activation == "BatchTopK" else k
        settings |= {"k": fits_k(k, n, where), "by": "value", "decoder": "unit"}
    else:
        raise RefusedMethod(f"{where}: activation {activation[:40]!r} is not read; Relu, TopK and BatchTopK are.")
    provenance = {"format": "saev", "config": config.plain()}
    tensors.finish()
    return built(named(kind)(**settings), sites("activations", None, d, d), taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write a file of schema 2.

    Args:
        d: ReLU, or the k largest with their sign.
        path: the `.pt` file, or a folder, which gets `sae.pt`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    e = exported(d, "saev", kinds=("relu", "signed_topk")).recentred(False)
    if e.kind == "signed_topk" and e.source.architecture.by != "value":
        raise RefusedMethod("saev ranks entries by value, not by magnitude.")
    if e.n % e.ends.d_in:
        raise RefusedMethod(
            f"saev has exp_factor latents per column; {e.n} latents of {e.ends.d_in} are no whole number."
        )
    t = {**e.tensors, "W_enc": e.tensors["W_enc"].T.contiguous()}
    signed = e.kind == "signed_topk"
    activation = {"cls": "TopK", "params": {"top_k": e.k}} if signed else {"cls": "Relu", "params": {}}
    config = {
        "d_vit": e.ends.d_in,
        "exp_factor": e.n // e.ends.d_in,
        "normalize_w_dec": False,
        "seed": 0,
        "activation": activation,
    }
    data = io.BytesIO()
    data.write((json.dumps({"schema": 2, "cfg": config, "commit": "unknown", "lib": "mechvis"}) + "\n").encode())
    body = io.BytesIO()
    torch.save(t, body)
    place = Path(path) if Path(path).suffix == ".pt" else Path(path) / "sae.pt"
    files.ensure_writable(place.parent)
    files.write_bytes(place, data.getvalue() + body.getvalue())
    return place


def _activation(outer: Config, config: Config) -> tuple[str, int]:
    """Name and k, in each of its schemas."""
    old = outer.found.get("cls")
    if old in ("Relu", "TopK", "BatchTopK"):
        return str(old), config.whole("top_k", 32)
    rule = config.table("activation")
    return rule.text("cls", "Relu"), rule.table("params").whole("top_k", 32)
