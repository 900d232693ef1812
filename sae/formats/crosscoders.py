"""Crosscoders: of ckkissane (`cfg.json` + `{i}.pt` or `cc_weights.pt`) and of crosscoder_learning (safetensors or
`.pt`).

ckkissane: `W_enc [s,d,n]`, `W_dec [n,s,d]`, `b_enc [n]`, `b_dec [s,d]`, with s models of one width: ReLU. Rows are to
be scaled to a mean norm of √d outside; the factors are in no file, so rows are taken as they come, which a warning
says.

crosscoder_learning: `encoder.weight [s,d,n]`, `encoder.bias`, `decoder.weight [s,n,d]`, `decoder.bias [s,d]`,
`code_normalization_id` 1 to 5; `k` and `threshold` where it is BatchTopK. `decoder_type="embedding_bag"` is refused.

Sites are called after what the configuration says, else `site 0`, `site 1`, ...: the order is that of the axis s.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis import files
from mechvis.errors import MechvisWarning, RefusedMethod, ShapeMismatch
from sae.architectures import named
from sae.architectures.batch_topk_crosscoder import CODE_NORMALIZATIONS
from sae.dictionary import Dictionary
from sae.ends import Ends
from sae.formats.building import built, fits_k
from sae.formats.checked import Config, Tensors
from sae.formats.seen import Seen, Told

FILES = ("model.safetensors", "*.safetensors", "cc_weights.pt", "*.pt")


def fits(seen: Seen) -> bool:
    """Is this one?"""
    if not seen.has(*FILES):
        return False
    found = seen.tensors(seen.file(*FILES))
    weight = found.get("encoder.weight", found.get("W_enc"))
    return weight is not None and weight.ndim == 3


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file(*FILES)
    where = str(place)
    tensors = Tensors(found=seen.tensors(place), where=where)
    names = ("cfg.json", "config.json", f"{place.stem}_cfg.json")
    config = Config(found=seen.json(*names), where=f"the configuration of {where}")
    theirs = tensors.has("encoder.weight")
    weight = tensors.take("encoder.weight" if theirs else "W_enc", None, None, None)
    s, d, n = weight.shape
    if theirs and not tensors.has("decoder.weight"):
        raise RefusedMethod(f"{where}: a crosscoder without decoder.weight (embedding_bag) is not read.")
    if theirs:
        W_dec = rearrange(tensors.take("decoder.weight", s, n, d), "site latent d -> latent (site d)")
    else:
        W_dec = rearrange(tensors.take("W_dec", n, s, d), "latent site d -> latent (site d)")
    taken: dict[str, Tensor] = {
        "W_enc": rearrange(weight, "site d latent -> latent (site d)"),
        "W_dec": W_dec.contiguous(),
        "b_enc": tensors.take("encoder.bias" if theirs else "b_enc", n),
        "b_dec": tensors.take("decoder.bias" if theirs else "b_dec", s, d).reshape(-1),
    }
    settings: dict[str, Any] = {"n_latents": n, "normalise": "none", "decoder": "free"}
    kind = "crosscoder"
    if tensors.has("k", "threshold"):
        kind = "batch_topk_crosscoder"
        settings |= _batch_topk(tensors, config, n, s, taken, where)
    if not theirs:
        warnings.warn(
            f"{where}: this crosscoder was trained on rows that were scaled, each model by a factor of its own, to a "
            "mean norm of √d. The factors are in no file: scale rows before you use it.",
            MechvisWarning,
            stacklevel=4,
        )
    ends = Ends(reads={name: d for name in _sites(config, s)})
    provenance = {"format": "crosscoders", "library": "crosscoder_learning" if theirs else "ckkissane"}
    tensors.finish("code_normalization_id")
    return built(named(kind)(**settings), ends, taken, where=where, provenance=provenance | {"config": config.plain()})


def write(d: Dictionary, path: Path) -> Path:
    """Write `model.safetensors` and `config.json` of crosscoder_learning.

    Raises:
        RefusedMethod: what it cannot say.
        ShapeMismatch: sites of several widths.
    """
    from safetensors.torch import save

    kind = d.architecture.NAME
    if kind not in ("crosscoder", "batch_topk_crosscoder"):
        raise RefusedMethod(f"crosscoders are 'crosscoder' and 'batch_topk_crosscoder' here; this is {kind!r}.")
    if d.ends.transcodes or d.architecture.skip or d.architecture.subtracts_bias(d.ends):
        raise RefusedMethod("crosscoder_learning writes what it reads, without a skip connection or a centred encoder.")
    widths = set(d.ends.reads.values())
    if len(widths) > 1:
        raise ShapeMismatch(
            f"crosscoder_learning has sites of one width; these have {', '.join(map(str, sorted(widths)))}."
        )
    W_enc, W_dec, b_dec = _without_scale(d)
    width = widths.pop()
    tensors = {
        "encoder.weight": rearrange(W_enc, "latent (site d) -> site d latent", d=width),
        "encoder.bias": d.b_enc.detach().cpu(),
        "decoder.weight": rearrange(W_dec, "latent (site d) -> site latent d", d=width),
        "decoder.bias": rearrange(b_dec, "(site d) -> site d", d=width),
    }
    config: dict[str, Any] = {
        "activation_dim": width,
        "dict_size": d.n_latents,
        "num_layers": len(d.ends.reads),
        "num_encoder_layers": len(d.ends.reads),
        "sites": list(d.ends.reads),
    }
    if kind == "batch_topk_crosscoder":
        rule = d.architecture.code_normalization
        config |= {"k": d.architecture.k, "code_normalization": rule.upper()}
        tensors["code_normalization_id"] = torch.tensor(CODE_NORMALIZATIONS.index(rule) + 1)
        tensors["k"] = torch.tensor(d.architecture.k, dtype=torch.int)
        thresholds = d.budget_thresholds.detach().cpu().float() * _threshold_scale(d)
        tensors["threshold"] = thresholds if rule == "decoupled" else thresholds[0]
    else:
        tensors["code_normalization_id"] = torch.tensor(1)
    folder = files.ensure_writable(path)
    files.write_bytes(folder / "model.safetensors", save({k: v.contiguous() for k, v in tensors.items()}))
    files.write_json(folder / "config.json", config)
    return folder


def _batch_topk(
    tensors: Tensors, config: Config, n: int, s: int, taken: dict[str, Tensor], where: str
) -> dict[str, Any]:
    """Settings of the BatchTopK form; puts the thresholds among the tensors."""
    known = tensors.number("code_normalization_id") if tensors.has("code_normalization_id") else 1.0
    if known not in (1.0, 2.0, 3.0, 4.0, 5.0):
        raise RefusedMethod(f"{where}: code_normalization_id {known:g} is not read; 1 to 5 are.")
    rule = CODE_NORMALIZATIONS[int(known) - 1]
    weights = (config.real("code_normalization_alpha_sae", 1.0), config.real("code_normalization_alpha_cc", 0.1))
    if rule == "mixed" and weights != (1.0, 0.1):
        raise RefusedMethod(f"{where}: a mixed code normalisation with weights {weights} is not read; (1, 0.1) is.")
    thresholds = tensors.take("threshold", *([s] if rule == "decoupled" else [])).double().reshape(-1)
    taken["budget_thresholds"] = torch.where(thresholds < 0, -1.0, thresholds)
    k = int(tensors.number("k"))
    return {"code_normalization": rule, "k": fits_k(k, n, where), "row_limit": None}


def _sites(config: Config, s: int) -> list[str]:
    """Names of the sites."""
    names = config.found.get("sites")
    if isinstance(names, list) and len(names) == len(set(map(str, names))) == s:
        return [str(name)[:200] for name in names]
    return [f"site {i}" for i in range(s)]


def _without_scale(
    d: Dictionary,
) -> tuple[Float[Tensor, "latent d"], Float[Tensor, "latent d"], Float[Tensor, " d"]]:
    """Encoder, decoder and bias for rows as they come."""
    from sae.normaliser import OF_ROWS

    if d.architecture.normalise in OF_ROWS:
        raise RefusedMethod(
            f"normalise={d.architecture.normalise!r} scales every row by its own norm; it has no place there."
        )
    scale = d.scale_in.detach().cpu()
    W_enc, W_dec, b_dec = (getattr(d, name).detach().cpu() for name in ("W_enc", "W_dec", "b_dec"))
    return W_enc / scale, W_dec * scale, b_dec * scale


def _threshold_scale(d: Dictionary) -> Float[Tensor, " budget"]:
    """What thresholds are multiplied with: norms of decoder rows grow with the scale, and so does what competes."""
    rule = d.architecture.code_normalization
    scales = torch.stack([part[0] for part in d.scale_in.detach().cpu().float().split(list(d.ends.reads.values()))])
    if rule == "none":
        return torch.ones(1)
    if rule == "decoupled":
        return scales
    if not torch.allclose(scales, scales[:1].expand_as(scales)):
        raise RefusedMethod(
            f"code_normalization={rule!r} adds up norms of sites that were scaled by several factors; once the "
            "factors are in the weights, other latents would be kept. Use "
            "normalise='none' or one factor for all sites."
        )
    return scales[:1]
