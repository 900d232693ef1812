"""SAELens: `cfg.json` + `sae_weights.safetensors` (versions 5 and 6 [code], checked against 6.54 [run]).

What its files mean, and what is made of it:

* `apply_b_dec_to_input`: taken as it stands (`centre`); transcoders never do.
* `normalize_activations`: `none`; `constant_norm_rescale` = 'token_norm'; `layer_norm` (ε is added to σ on the way in,
  not on the way back); `expected_average_only_in`: SAELens itself then expects rows that were scaled outside, so the
  factor is read from `activation_scaler.json`, and without it the file is refused; `covariance_whitening` likewise is
  refused: its matrix is folded when SAELens saves for inference.
* `topk`: `rescale_acts_by_decoder_norm` ranks by z‖W_dec‖ and returns z‖W_dec‖: the rows are folded, which is the same.
* BatchTopK and Matryoshka are saved by SAELens as `jumprelu`, one threshold for all latents; so do we.
* `reshape_activations="hook_z"`: heads side by side; our rows are flat already.
* `abstopk` and `matching_pursuit` are `sae.formats.fixed`. A `residual_threshold` is in units of the scaled rows.

Refused: `temporal`.
"""

from pathlib import Path
from typing import Any

import torch

from mechvis import files
from mechvis.errors import BadData, RefusedMethod
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, rows_of_norm_one, sites, thresholds_as_they_are
from sae.formats.checked import Config, Tensors
from sae.formats.express import Exported, exported, needed_threshold
from sae.formats.seen import Seen, Told

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.54.12"
"""The version whose layout is written."""
NORMS = {"none": "none", "constant_norm_rescale": "token_norm", "layer_norm": "layer_norm"}
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit", *TRANSCODERS)


def fits(seen: Seen) -> bool:
    """Is this one?"""
    return seen.has(CONFIG) and seen.has(WEIGHTS)


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    where = str(seen.folder / CONFIG)
    config = _modern(Config(found=seen.json(CONFIG), where=where))
    tensors = Tensors(found=seen.safetensors(seen.file(WEIGHTS)), where=str(seen.folder / WEIGHTS))
    architecture = config.text("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise RefusedMethod(f"{where}: architecture {architecture[:40]!r} is not read; {', '.join(ARCHITECTURES)} are.")
    d_in, n = config.whole("d_in"), config.whole("d_sae")
    transcodes = architecture in TRANSCODERS
    d_out = config.whole("d_out", d_in) if transcodes else d_in
    metadata = config.table("metadata")
    site = metadata.text("hook_name", None) if metadata.found.get("hook_name") else "activations"
    out = metadata.text("hook_name_out") if metadata.found.get("hook_name_out") else "written"
    ends = sites(site, out if transcodes else None, d_in, d_out)
    normalise, scale = _normaliser(config, seen)
    if transcodes and normalise != "none":
        raise RefusedMethod(
            f"{where}: a transcoder that scales what it reads (normalize_activations) and leaves open what that means "
            "for what it writes is not read."
        )
    taken = {"W_dec": tensors.take("W_dec", n, d_out), "b_dec": tensors.take("b_dec", d_out)}
    if architecture != "matching_pursuit":
        taken["W_enc"] = tensors.take("W_enc", d_in, n).T.contiguous()
    settings: dict[str, Any] = {"n_latents": n, "normalise": normalise, "skip": "skip" in architecture}
    settings["centre"] = config.flag("apply_b_dec_to_input", True) and not transcodes
    settings["decoder"] = rows_of_norm_one(taken["W_dec"])
    kind = "relu"
    if architecture == "gated":
        kind = "gated"
        taken |= {name: tensors.take(name, n) for name in ("b_gate", "b_mag", "r_mag")}
    elif architecture != "matching_pursuit":
        taken["b_enc"] = tensors.take("b_enc", n)
    if "jumprelu" in architecture:
        kind = "jumprelu"
        settings |= thresholds_as_they_are(n)
        old = not tensors.has("threshold") and tensors.has("log_threshold")
        found = tensors.take("log_threshold", n).exp() if old else tensors.take("threshold", n)
        taken["threshold"] = found.clamp_min(0)  # SAELens takes the ReLU first, so a negative one is as good as 0
    if "skip" in architecture:
        taken["W_skip"] = tensors.take("W_skip", d_out, d_in)
    if architecture in ("topk", "abstopk"):
        kind = "topk" if architecture == "topk" else "signed_topk"
        settings["k"] = fits_k(config.whole("k", 100), n, where)
        settings["decoder"] = "unit"  # ranked by the pre-activation alone, after this:
        if config.flag("rescale_acts_by_decoder_norm", False):
            norms = taken["W_dec"].norm(dim=1)
            taken["W_enc"], taken["b_enc"] = taken["W_enc"] * norms[:, None], taken["b_enc"] * norms
            taken["W_dec"] = taken["W_dec"] / norms.clamp_min(1e-30)[:, None]
    if architecture == "matching_pursuit":
        kind = "fixed_pursuit"
        most = None if config.found.get("max_iterations") is None else config.whole("max_iterations")
        settings |= {"k": most or d_in, "residual_threshold": config.real("residual_threshold", 1e-2)}
        settings |= {"stop_on_repeat": config.flag("stop_on_duplicate_support", True), "decoder": "unit"}
        if not settings["centre"]:  # then SAELens does not add b_dec either
            taken["b_dec"] = torch.zeros_like(taken["b_dec"])
    provenance = {"format": "saelens", "config": config.plain(), "metadata": metadata.plain()}
    tensors.finish("log_threshold")
    return built(named(kind)(**settings), ends, taken, where=where, provenance=provenance, scale=scale)


def write(d: Dictionary, path: Path) -> Path:
    """Write the layout of SAELens 6.

    Raises:
        RefusedMethod: what it cannot say.
    """
    from safetensors.torch import save

    kinds = ("relu", "gated", "jumprelu", "topk", "batch_topk", "matching_pursuit", "signed_topk")
    e = exported(d, "saelens", kinds=kinds, rows=("token_norm", "layer_norm"), transcoder=True, skip=True)
    architecture, tensors = _architecture(e), dict(e.tensors)
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    if e.kind == "signed_topk" and e.source.architecture.by != "magnitude":
        raise RefusedMethod("saelens keeps signs only where entries are ranked by magnitude.")
    if e.kind == "batch_topk":
        tensors["threshold"] = torch.full((e.n,), needed_threshold(e, "saelens"), dtype=tensors["W_dec"].dtype)
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": e.ends.d_in,
        "d_sae": e.n,
        "dtype": str(tensors["W_dec"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": e.subtracts,
        "normalize_activations": {ours: theirs for theirs, ours in NORMS.items()}[e.rows],
        "reshape_activations": "none",
        "metadata": {
            **(d.provenance.get("metadata") or {} if d.provenance.get("format") == "saelens" else {}),
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "hook_name": e.site,
        },
    }
    if e.ends.transcodes:
        config["d_out"] = e.ends.d_out
        config["metadata"]["hook_name_out"] = next(iter(e.ends.writes))
    if e.kind in ("topk", "signed_topk"):
        config |= {"k": e.k, "rescale_acts_by_decoder_norm": False}
    if e.kind == "matching_pursuit":
        config |= _pursuit(e)
    folder = files.ensure_writable(path)
    files.write_bytes(folder / WEIGHTS, save(tensors))
    files.write_json(folder / CONFIG, config)
    return folder


def _architecture(e: Exported) -> str:
    plain = {"relu": "standard", "batch_topk": "jumprelu", "signed_topk": "abstopk"}.get(e.kind, e.kind)
    skip = e.source.architecture.skip
    if not e.ends.transcodes:
        if skip:
            raise RefusedMethod("saelens has skip connections in transcoders only.")
        return plain
    if plain not in ("standard", "jumprelu"):
        raise RefusedMethod(f"saelens has ReLU and JumpReLU transcoders, none of {e.source.architecture.NAME!r}.")
    return ("jumprelu_" if plain == "jumprelu" else "") + ("skip_transcoder" if skip else "transcoder")


def _pursuit(e: Exported) -> dict[str, Any]:
    a = e.source.architecture
    if getattr(a, "signed", False) or getattr(a, "solve", "pursuit") != "pursuit":
        raise RefusedMethod("saelens has neither signed codes nor solved ones in a matching pursuit.")
    return {
        "apply_b_dec_to_input": True,  # or b_dec would not be written either
        "max_iterations": a.k,
        "residual_threshold": a.residual_threshold,
        "stop_on_duplicate_support": getattr(a, "stop_on_repeat", False),
    }


def _modern(config: Config) -> Config:
    """Settings of version 5 under the names of version 6."""
    found = dict(config.found)
    metadata = found.get("metadata")
    version = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    if version and not str(version).startswith(("0.", "1.", "2.", "3.", "4.", "5.")):
        return config
    for old, new in (("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")):
        if old in found:
            found.setdefault(new, found.pop(old))
    found.setdefault("architecture", "standard")
    activation, k = found.get("activation_fn", "relu"), None
    if isinstance(found.get("activation_fn_kwargs"), dict):
        k = found["activation_fn_kwargs"].get("k")
    if activation == "topk" and k is not None:
        found |= {"architecture": "topk", "k": k}
    elif activation not in ("relu", "topk"):
        raise RefusedMethod(f"{config.where}: activation_fn {str(activation)[:40]!r} is not read; relu and topk are.")
    if found.get("finetuning_scaling_factor"):
        raise RefusedMethod(f"{config.where}: finetuning_scaling_factor is of version 5 only, and is not read.")
    norm = found.get("normalize_activations")
    if norm is None or isinstance(norm, bool):
        found["normalize_activations"] = "expected_average_only_in" if norm else "none"
    if not isinstance(metadata, dict):
        found["metadata"] = {key: found[key] for key in ("hook_name", "model_name") if key in found}
    return Config(found=found, where=config.where)


def _normaliser(config: Config, seen: Seen) -> tuple[str, float]:
    """Our word for the scale, and what rows are divided by."""
    norm = config.text("normalize_activations", "none")
    if norm in NORMS:
        return NORMS[norm], 1.0
    if norm != "expected_average_only_in":
        raise RefusedMethod(
            f"{config.where}: normalize_activations={norm!r} is not read. SAELens folds it when it saves for "
            "inference: sae.save_inference_model(path)."
        )
    scaler = Config(found=seen.json(SCALER), where=str(seen.folder / SCALER))
    if scaler.found.get("scaling_factor") is None:
        raise BadData(
            f"{config.where}: rows have to be scaled to the mean norm √d, by a factor that is not in the file, and "
            f"there is no {SCALER} beside it. Save it again with "
            "save_inference_model of SAELens, which folds the factor."
        )
    factor = scaler.real("scaling_factor")
    if factor <= 0:
        raise BadData(f"scaling_factor in {scaler.where} is {factor}; it is above zero.")
    return "mean_norm", 1 / factor
