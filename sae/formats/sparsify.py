"""sparsify of EleutherAI: `<hookpoint>/cfg.json` + `sae.safetensors` (1.3 [code], checked against eai-sparsify 1.3.3
[run]).

`encoder.weight [n,d]`, `encoder.bias`, `W_dec [n,d]`, `b_dec`, `W_skip [d,d]` if `skip_connection`. Codes are the k
largest of ReLU(z). `b_dec` is taken off before encoding unless `transcode`; `normalize_decoder` is about training and
changes nothing here. (SAELens' own reader transposes `W_dec` of these files, and reads `apply_b_dec_to_input` off
`normalize_decoder`, so it fails or answers something else [run].) The hookpoint is the folder's name.

Refused: `groupmax`, which takes the largest of each of k groups.
"""

from pathlib import Path
from typing import Any

from mechvis import files
from mechvis.errors import RefusedMethod
from sae.architectures import named
from sae.dictionary import Dictionary
from sae.formats.building import built, fits_k, sites
from sae.formats.checked import Config, Tensors
from sae.formats.express import exported
from sae.formats.seen import Seen, Told

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def fits(seen: Seen) -> bool:
    """Is this one?"""
    return seen.has(CONFIG) and seen.has(WEIGHTS)


def read(seen: Seen, told: Told) -> Dictionary:
    """See the module.

    Raises:
        BadData, ShapeMismatch, NotFinite, RefusedMethod, StoreCorrupt.
    """
    where = str(seen.folder / CONFIG)
    config = Config(found=seen.json(CONFIG), where=where)
    tensors = Tensors(found=seen.safetensors(seen.file(WEIGHTS)), where=str(seen.folder / WEIGHTS))
    activation = config.text("activation", "topk")
    if activation != "topk":
        raise RefusedMethod(f"{where}: activation {activation[:40]!r} is not read; topk is.")
    d = config.whole("d_in")
    n = config.whole("num_latents", 0, least=0) or config.whole("expansion_factor") * d
    transcodes, skip = config.flag("transcode", False), config.flag("skip_connection", False)
    settings: dict[str, Any] = {
        "n_latents": n,
        "k": fits_k(config.whole("k", 32), n, where),
        "normalise": "none",
        "decoder": "unit",
        "centre": not transcodes,
        "skip": skip,
    }
    taken = {
        "W_enc": tensors.take("encoder.weight", n, d),
        "b_enc": tensors.take("encoder.bias", n),
        "W_dec": tensors.take("W_dec", n, d),
        "b_dec": tensors.take("b_dec", d),
    }
    if skip:
        taken["W_skip"] = tensors.take("W_skip", d, d)
    name = seen.folder.resolve().name or "activations"
    ends = sites(name, f"{name} (written)" if transcodes else None, d, d)
    provenance = {"format": "sparsify", "config": config.plain()}
    tensors.finish()
    return built(named("topk")(**settings), ends, taken, where=where, provenance=provenance)


def write(d: Dictionary, path: Path) -> Path:
    """Write `cfg.json` and `sae.safetensors`.

    Raises:
        RefusedMethod: what it cannot say.
    """
    from safetensors.torch import save

    e = exported(d, "sparsify", kinds=("topk",), transcoder=True, skip=True)
    if e.ends.d_in != e.ends.d_out:
        raise RefusedMethod(f"sparsify reads and writes one width; this reads {e.ends.d_in} and writes {e.ends.d_out}.")
    e = e.recentred(not e.ends.transcodes)
    t, skip = e.tensors, "W_skip" in e.tensors
    tensors = {"encoder.weight": t["W_enc"], "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    if skip:
        tensors["W_skip"] = t["W_skip"]
    config = {
        "activation": "topk",
        "expansion_factor": max(1, e.n // e.ends.d_in),
        "normalize_decoder": not e.ends.transcodes,
        "num_latents": e.n,
        "k": e.k,
        "multi_topk": False,
        "skip_connection": skip,
        "transcode": e.ends.transcodes,
        "d_in": e.ends.d_in,
    }
    folder = files.ensure_writable(path)
    files.write_bytes(folder / WEIGHTS, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    files.write_json(folder / CONFIG, config)
    return folder
