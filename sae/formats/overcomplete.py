"""overcomplete: a state dict, or a whole module, saved with torch (0.3 [code], checked against it [run]).

`encoder.final_block.0.weight [n,d]`, `.bias`, `dictionary._weights [n,d]`, `dictionary.multiplier`; JumpSAE
`thresholds` (logarithms); RA `dictionary.C`, `W`, `Relax`. Atoms are normalised(_weights)·e^multiplier, or
e^multiplier·(W C + Relax); there is no bias of the decoder. Which rule finds codes is only said by a whole module, or
by JumpSAE's thresholds. For a bare state dict, say it: `k=` (TopKSAE), `threshold=` (BatchTopKSAE: its running
threshold is not saved) or `architecture='relu'`. What is written here gets a JSON file of the same name beside it,
which says it.

* Encoders: 'linear', and 'mlp_bn_1' (a batch norm is folded into the weights, as in `.eval()`). Others are refused.
* Atoms are scaled to norm one (the 'l2' of its `DictionaryLayer`); a file whose atoms are far from it may be of another
  normalisation, and is warned about.
* MpSAE takes an atom that points away, with a negative code; it is read as it is (`sae.formats.fixed`), with `k=`.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import files
from mechvis.errors import BadData, MechvisWarning, RefusedMethod
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, rows_of_norm_one, sites, thresholds_as_they_are
from sae.formats.checked import Config, Tensors
from sae.formats.express import exported, kind_of, needed_threshold
from sae.formats.machine import Inert
from sae.formats.seen import Seen, Told

FILES = ("*.pt", "*.pth")
CLASSES = {"relu": "SAE", "topk": "TopKSAE", "batch_topk": "BatchTopKSAE", "jumprelu": "JumpSAE"}
WEIGHT, BIAS = "encoder.final_block.0.weight", "encoder.final_block.0.bias"


def fits(seen: Seen) -> bool:
    """Is this one?"""
    if not seen.has(*FILES):
        return False
    found = seen.tensors(seen.file(*FILES))
    return "dictionary._weights" in found or "dictionary.C" in found


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file(*FILES)
    where, found = str(place), seen.pickled(place)
    tensors = Tensors(found=seen.tensors(place), where=where)
    beside = Config(found=seen.json(f"{place.stem}.json"), where=f"{place.stem}.json")
    module = found if isinstance(found, Inert) else None
    name = module.name.split(".")[-1] if module else beside.text("class", "")
    known = Config(found=module.state if module else beside.found, where=where)
    W_dec = _atoms(tensors, _normalisation(module), where)
    n, d = W_dec.shape
    settings: dict[str, Any] = {"n_latents": n, "normalise": "none", "decoder": rows_of_norm_one(W_dec)}
    taken = {"W_dec": W_dec, "b_dec": torch.zeros(d, dtype=W_dec.dtype)}
    if name == "MpSAE" or not any(key.startswith("encoder.") for key in tensors.found):
        kind = "fixed_pursuit"
        settings |= {"k": known.whole("k", told.k), "signed": True, "stop_on_repeat": False, "decoder": "unit"}
    else:
        taken |= _encoder(tensors, n, d, where)
        settings["centre"] = False
        kind = _rule(settings, taken, tensors, name, known, told, where)
    ends = sites(beside.text("site", "activations"), None, d, d)
    provenance = {"format": "overcomplete", "class": name}
    tensors.finish("encoder.final_block.1.num_batches_tracked")
    return built(named(kind)(**settings), ends, taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write a state dict and, beside it, a JSON file that says the class.

    Args:
        d: a dictionary without a bias of the decoder.
        path: the `.pt` file, or a folder, which gets `sae.pt`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    if kind_of(d) in ("relu", "jumprelu") and d.architecture.decoder == "free":
        d = d.folded()
    e = exported(d, "overcomplete", kinds=tuple(CLASSES)).recentred(False)
    t = e.tensors
    if bool(t["b_dec"].abs().max() > 0):
        raise RefusedMethod(
            "overcomplete has no bias of the decoder, and this dictionary has b_dec. Train on rows whose mean was "
            "taken off, with b_dec at zero; or choose another format."
        )
    norms = t["W_dec"].norm(dim=1)
    scale = norms.mean()
    if float((norms - scale).abs().max()) > 1e-4 * float(scale):
        raise RefusedMethod(
            "overcomplete has atoms of one norm; these have several, and what is kept depends on the codes."
        )
    state = {
        WEIGHT: t["W_enc"],
        BIAS: t["b_enc"],
        "dictionary._weights": t["W_dec"] / scale,
        "dictionary.multiplier": scale.log(),
    }
    known: dict[str, Any] = {"class": CLASSES[e.kind], "nb_concepts": e.n, "input_shape": e.ends.d_in, "site": e.site}
    if e.kind == "jumprelu":
        state["thresholds"] = t["threshold"].clamp_min(1e-30).log()
    if e.kind in ("topk", "batch_topk"):
        known["top_k"] = e.k
    if e.kind == "batch_topk":
        known["running_threshold"] = needed_threshold(e, "overcomplete")
    place = Path(path) if Path(path).suffix in (".pt", ".pth") else Path(path) / "sae.pt"
    data = io.BytesIO()
    torch.save({key: value.contiguous() for key, value in state.items()}, data)
    files.ensure_writable(place.parent)
    files.write_bytes(place, data.getvalue())
    files.write_json(place.with_suffix(".json"), known)
    return place


def _rule(
    settings: dict[str, Any],
    taken: dict[str, Tensor],
    tensors: Tensors,
    name: str,
    known: Config,
    told: Told,
    where: str,
) -> str:
    """The rule that finds codes; fills in what it needs."""
    n = settings["n_latents"]
    if tensors.has("Q"):
        raise RefusedMethod(f"{where}: quantised codes (QSAE) are not read.")
    if tensors.has("thresholds"):
        taken["threshold"] = tensors.take("thresholds", n).exp()
        settings |= thresholds_as_they_are(n)
        return "jumprelu"
    running = known.found.get("running_threshold")
    if isinstance(running, Tensor):
        running = float(running)
    if told.threshold is not None or name == "BatchTopKSAE":
        threshold = Config(found={"running_threshold": running}, where=where)
        found = told.threshold if told.threshold is not None else threshold.real("running_threshold")
        # Its k is of the whole batch, so it says nothing about a row; codes are found by the threshold alone.
        settings |= {"decoder": "unit", "row_limit": None, "k": min(n, max(1, told.k or 32))}
        taken["threshold"] = torch.tensor(found, dtype=torch.float64)
        return "batch_topk"
    if told.k is not None or name in ("TopKSAE", "RATopKSAE"):
        settings |= {"decoder": "unit", "k": fits_k(told.k or known.whole("top_k"), n, where)}
        return "topk"
    if told.architecture == "relu" or name == "SAE":
        return "relu"
    raise BadData(
        f"{where} does not say which rule finds codes. Say k=... for a TopKSAE, threshold=... for a BatchTopKSAE (its "
        "running_threshold), or architecture='relu' for an SAE."
    )


def _encoder(tensors: Tensors, n: int, d: int, where: str) -> dict[str, Tensor]:
    """The linear map; a batch norm after it folded in."""
    block = {key for key in tensors.found if key.startswith("encoder.")}
    norm = "encoder.final_block.1."
    known = {WEIGHT, BIAS, *(norm + part for part in ("weight", "bias", "running_mean", "running_var"))}
    if tensors.has("encoder.weight") and len(block) <= 2:  # tied or untied, without a norm
        bias = tensors.take("encoder.bias", n) if tensors.has("encoder.bias") else torch.zeros(n)
        return {"W_enc": tensors.take("encoder.weight", n, d), "b_enc": bias}
    if not tensors.has(WEIGHT) or block - known - {norm + "num_batches_tracked"}:
        raise RefusedMethod(
            f"{where}: its encoder is not one linear layer (it has {', '.join(sorted(block))[:120]}). Only 'linear' "
            "and 'mlp_bn_1' are read."
        )
    weight, bias = tensors.take(WEIGHT, n, d), tensors.take(BIAS, n)
    if tensors.has(norm + "weight"):
        if not tensors.has(norm + "running_var"):
            raise RefusedMethod(f"{where}: a layer norm over latents cannot be folded into weights; it is not read.")
        gain = tensors.take(norm + "weight", n) / (tensors.take(norm + "running_var", n) + 1e-5).sqrt()
        bias = (bias - tensors.take(norm + "running_mean", n)) * gain + tensors.take(norm + "bias", n)
        weight = weight * gain[:, None]
    return {"W_enc": weight, "b_enc": bias}


def _normalisation(module: Inert | None) -> str:
    layer = (module.state.get("_modules") or {}).get("dictionary") if module else None
    found = layer.state.get("normalization") if isinstance(layer, Inert) else None
    return str(getattr(found, "name", "") or "normalize_l2").split(".")[-1]


def _atoms(tensors: Tensors, normalisation: str, where: str) -> Float[Tensor, "latent d"]:
    """What one unit of each latent writes."""
    factor = torch.tensor(
        tensors.number("dictionary.multiplier") if tensors.has("dictionary.multiplier") else 0.0
    ).exp()
    if tensors.has("dictionary.C"):
        points = tensors.take("dictionary.C", None, None)
        relax = tensors.take("dictionary.Relax", None, points.shape[1])
        mix = tensors.take("dictionary.W", len(relax), len(points)).relu()
        return (mix / (mix.sum(1, keepdim=True) + 1e-8) @ points + relax) * factor
    weights = tensors.take("dictionary._weights", None, None)
    if normalisation == "normalize_identity":
        return weights * factor
    if normalisation != "normalize_l2":
        raise RefusedMethod(f"{where}: atoms normalised by {normalisation[:40]!r} are not read; l2 and identity are.")
    norms = weights.norm(dim=1, keepdim=True)
    if float((norms - 1).abs().max()) > 0.1:
        warnings.warn(
            f"{where}: atoms have norms from {float(norms.min()):.3g} to {float(norms.max()):.3g}. They are scaled "
            "to norm one, as overcomplete does by default; if the dictionary was made "
            "with another normalisation, this is wrong.",
            MechvisWarning,
            stacklevel=4,
        )
    return weights / (norms + 1e-8) * factor
