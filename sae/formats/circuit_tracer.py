"""circuit-tracer: one safetensors file per layer's transcoder, `layer_{i}.safetensors`; and Gemma Scope's `params.npz`.

On disk `W_enc [n,d]`, `W_dec [d,n]` (circuit-tracer turns it when it loads), `b_enc`, `b_dec`, perhaps `W_skip [d,d]`;
in `.npz` `W_enc [d,n]`, `W_dec [n,d]`, `b_enc`, `b_dec`, `threshold`. JumpReLU where there is a `threshold`, else ReLU
[code]. `b_dec` is never taken off before encoding. Shapes decide which way weights lie; `b_enc` says what n is. Where
n = d the documented way is taken.

A `.npz` file may be an autoencoder of the residual stream as well as a transcoder: nothing in it says so. It is read as
an autoencoder; the safetensors files as transcoders. `.npz` is read without pickles.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis import files
from mechvis.errors import RefusedMethod, StoreCorrupt
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, rows_of_norm_one, sites, thresholds_as_they_are
from sae.formats.checked import Tensors
from sae.formats.express import exported
from sae.formats.seen import Seen, Told
from sae.formats.visaebench import oriented

NEEDED = ("W_enc", "W_dec", "b_enc", "b_dec")


def fits(seen: Seen) -> bool:
    """Is this one?"""
    if seen.has("*.npz"):
        return True
    if not seen.has("layer_*.safetensors") and not (seen.one and seen.has("*.safetensors")):
        return False
    found = seen.safetensors(seen.file("layer_*.safetensors", "*.safetensors"))
    return all(name in found for name in NEEDED)


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file("*.npz", "layer_*.safetensors", "*.safetensors")
    where, numpys = str(place), place.suffix == ".npz"
    tensors = Tensors(found=_arrays(place) if numpys else seen.safetensors(place), where=where)
    n, d_out = len(tensors.take("b_enc", None)), len(tensors.take("b_dec", None))
    W_enc, W_dec = tensors.take("W_enc", None, None), tensors.take("W_dec", None, None)
    d_in = W_enc.numel() // n if n else 0
    if n in (d_in, d_out):
        taken = {"W_enc": W_enc.T if numpys else W_enc, "W_dec": W_dec if numpys else W_dec.T}
    else:
        taken = {
            "W_enc": oriented(W_enc, n, d_in, "W_enc", where),
            "W_dec": oriented(W_dec, n, d_out, "W_dec", where),
        }
    taken |= {"b_enc": tensors.take("b_enc", n), "b_dec": tensors.take("b_dec", d_out)}
    settings: dict[str, Any] = {"n_latents": n, "normalise": "none", "centre": False}
    settings["decoder"] = rows_of_norm_one(taken["W_dec"])
    kind = "relu"
    if tensors.has("threshold"):
        kind = "jumprelu"
        settings |= thresholds_as_they_are(n)
        taken["threshold"] = tensors.take("threshold", n).clamp_min(0)
    elif tensors.has("activation_function.threshold"):
        kind = "jumprelu"
        settings |= thresholds_as_they_are(n)
        taken["threshold"] = tensors.take("activation_function.threshold", n).clamp_min(0)
    if tensors.has("W_skip"):
        settings["skip"], taken["W_skip"] = True, tensors.take("W_skip", d_out, d_in)
    transcodes = not numpys
    layer = place.stem.removeprefix("layer_")
    site = f"blocks.{layer}" if layer.isdigit() else "read"
    ends = sites(
        f"{site}.read" if transcodes else "activations", f"{site}.written" if transcodes else None, d_in, d_out
    )
    provenance = {"format": "circuit_tracer", "file": place.name}
    tensors.finish()
    return built(named(kind)(**settings), ends, taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write one transcoder.

    Args:
        d: a ReLU or JumpReLU transcoder (BatchTopK becomes JumpReLU).
        path: the `.safetensors` file, or a folder, which gets `layer_0.safetensors`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    from safetensors.torch import save

    from sae.formats.express import needed_threshold

    e = exported(d, "circuit_tracer", kinds=("relu", "jumprelu", "batch_topk"), transcoder=True, skip=True)
    if not e.ends.transcodes:
        raise RefusedMethod("circuit_tracer holds transcoders; this dictionary writes what it reads.")
    e = e.recentred(False)
    tensors = {**e.tensors, "W_dec": e.tensors["W_dec"].T.contiguous()}
    if e.kind == "batch_topk":
        tensors["threshold"] = torch.full((e.n,), needed_threshold(e, "circuit_tracer"), dtype=tensors["W_enc"].dtype)
    place = Path(path) if Path(path).suffix == ".safetensors" else Path(path) / "layer_0.safetensors"
    files.ensure_writable(place.parent)
    files.write_bytes(place, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return place


def _arrays(place: Path) -> dict[str, Tensor]:
    """The arrays of a `.npz` file; pickled ones are refused by numpy."""
    try:
        with np.load(place, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, NotImplementedError) as error:
        raise StoreCorrupt(f"{place} is no .npz file of plain arrays, or is truncated: {error}") from error
    except Exception as error:  # zipfile and numpy raise errors of their own for what is damaged
        raise StoreCorrupt(f"{place} is damaged: {type(error).__name__}.") from error
