"""openai/sparse_autoencoder: one `.pt` file with a state dict (June 2024 [code]).

`pre_bias [d]`, `latent_bias [n]`, `encoder.weight [n,d]`, `decoder.weight [d,n]` (missing where encoder and decoder are
tied), `activation` (ReLU or TopK, as text), `activation_state_dict` with `k` and `postact_fn`. Rows are layer-normed if
and only if the activation is TopK: that is how its own loader decides, since the flag is in no file. As in SAELens,
1e-5 is added to σ on the way in, not on the way back.

`postact_fn="Identity"` keeps negative entries among the k largest (`sae.formats.fixed.SignedTopK`).
"""

import io
from pathlib import Path
from typing import Any

import torch

from mechvis import files
from mechvis.errors import RefusedMethod
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, rows_of_norm_one, sites
from sae.formats.checked import Config, Tensors
from sae.formats.express import exported
from sae.formats.seen import Seen, Told


def fits(seen: Seen) -> bool:
    """Is this one?"""
    if not seen.has("*.pt"):
        return False
    found = seen.pickled(seen.file("*.pt"))
    return isinstance(found, dict) and "pre_bias" in found and "latent_bias" in found


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    place = seen.file("*.pt")
    where = str(place)
    tensors = Tensors(found=seen.tensors(place), where=where)
    config = Config(found={k: v for k, v in seen.pickled(place).items() if isinstance(k, str)}, where=where)
    W_enc = tensors.take("encoder.weight", None, None)
    n, d = W_enc.shape
    tied = not tensors.has("decoder.weight")
    W_dec = W_enc.clone() if tied else tensors.take("decoder.weight", d, n).T.contiguous()
    activation = config.text("activation", "ReLU")
    settings: dict[str, Any] = {"n_latents": n, "centre": True, "decoder": rows_of_norm_one(W_dec)}
    if activation == "TopK":
        rule = config.table("activation_state_dict")
        after = rule.text("postact_fn", "ReLU")
        if after not in ("ReLU", "Identity"):
            raise RefusedMethod(f"{where}: postact_fn {after[:40]!r} is not read; ReLU and Identity are.")
        kind = "topk" if after == "ReLU" else "signed_topk"
        settings |= {"normalise": "layer_norm", "decoder": "unit", "k": fits_k(rule.whole("k"), n, where)}
        settings |= {} if kind == "topk" else {"by": "value"}
    elif activation == "ReLU":
        kind, settings["normalise"] = "relu", "none"
    else:
        raise RefusedMethod(f"{where}: activation {activation[:40]!r} is not read; ReLU and TopK are.")
    taken = {
        "W_enc": W_enc,
        "b_enc": tensors.take("latent_bias", n),
        "W_dec": W_dec,
        "b_dec": tensors.take("pre_bias", d),
    }
    provenance = {"format": "openai", "activation": activation, "tied": tied}
    tensors.finish("stats_last_nonzero", "latents_*")
    return built(named(kind)(**settings), sites("activations", None, d, d), taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write a state dict.

    Args:
        d: TopK on layer-normed rows, or ReLU on rows as they are.
        path: the `.pt` file, or a folder, which gets `autoencoder.pt`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    e = exported(d, "openai", kinds=("relu", "topk"), rows=("layer_norm",))
    if (e.kind == "topk") != (e.rows == "layer_norm"):
        raise RefusedMethod(
            f"openai's files are layer-normed where they are TopK and nowhere else; this is {d.architecture.NAME!r} "
            f"with normalise={d.architecture.normalise!r}."
        )
    e = e.recentred(True)
    t = e.tensors
    state: dict[str, Any] = {
        "pre_bias": t["b_dec"],
        "latent_bias": t["b_enc"],
        "encoder.weight": t["W_enc"],
        "decoder.weight": t["W_dec"].T.contiguous(),
        "stats_last_nonzero": torch.zeros(e.n, dtype=torch.long),
        "latents_activation_frequency": torch.ones(e.n),
        "latents_mean_square": torch.zeros(e.n),
        "activation": "TopK" if e.kind == "topk" else "ReLU",
        "activation_state_dict": {"k": e.k, "postact_fn": "ReLU"} if e.kind == "topk" else {},
    }
    place = Path(path) if Path(path).suffix == ".pt" else Path(path) / "autoencoder.pt"
    data = io.BytesIO()
    torch.save(state, data)
    files.ensure_writable(place.parent)
    files.write_bytes(place, data.getvalue())
    return place
