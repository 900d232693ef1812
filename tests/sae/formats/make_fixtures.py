"""Makes the fixtures of this folder with the real libraries; run once, in an environment that has them.

    python make_fixtures.py [folder]

Needs torch, sae-lens 6.54, dictionary-learning 0.1.0, overcomplete 0.3, eai-sparsify 1.3.3. Every fixture is what the
library itself saves (d = 8, n = 16) and `expected.safetensors`: rows `x`, its own `codes` and `y` of them.
`versions.json` says with what they were made.
"""

import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

D, N, K, ROWS = 8, 16, 3, 12
HERE = Path(__file__).resolve().parent / "fixtures"


def numbers(module: torch.nn.Module, seed: int) -> None:
    """Parameters with something in all of them."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            scale = 0.3 if p.ndim == 1 or "r_mag" in name else 0.6
            p.copy_(scale * torch.randn(p.shape, generator=g))
            if "threshold" in name and "thresholds" not in name:
                p.abs_()


def rows() -> torch.Tensor:
    """Rows with a mean and several norms."""
    g = torch.Generator().manual_seed(7)
    return (torch.randn(ROWS, D, generator=g) + 0.4) * (1 + 2 * torch.rand(ROWS, 1, generator=g))


def keep(folder: Path, x, codes, y) -> None:
    """What the library answers."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"x": x, "codes": codes, "y": y}
    save_file({k: v.detach().contiguous() for k, v in found.items()}, folder / "expected.safetensors")


def saelens(out: Path) -> None:
    """Every architecture, with and without b_dec in the input, and the scales of rows."""
    import sae_lens as s

    plain = {"d_in": D, "d_sae": N, "device": "cpu"}
    made = {
        "standard": (s.StandardSAE, s.StandardSAEConfig, {}),
        "standard_uncentred": (s.StandardSAE, s.StandardSAEConfig, {"apply_b_dec_to_input": False}),
        "standard_layer_norm": (s.StandardSAE, s.StandardSAEConfig, {"normalize_activations": "layer_norm"}),
        "standard_constant_norm": (
            s.StandardSAE,
            s.StandardSAEConfig,
            {"normalize_activations": "constant_norm_rescale"},
        ),
        "gated": (s.GatedSAE, s.GatedSAEConfig, {}),
        "jumprelu": (s.JumpReLUSAE, s.JumpReLUSAEConfig, {}),
        "topk": (s.TopKSAE, s.TopKSAEConfig, {"k": K}),
        "topk_rescaled": (s.TopKSAE, s.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        "transcoder": (s.Transcoder, s.TranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
        "skip_transcoder": (s.SkipTranscoder, s.SkipTranscoderConfig, {"d_out": 6, "apply_b_dec_to_input": False}),
        "jumprelu_transcoder": (
            s.JumpReLUTranscoder,
            s.JumpReLUTranscoderConfig,
            {"d_out": 6, "apply_b_dec_to_input": False},
        ),
    }
    from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig

    made["abstopk"] = (AbsTopKSAE, AbsTopKSAEConfig, {"k": K})
    made["matching_pursuit"] = (
        MatchingPursuitSAE,
        MatchingPursuitSAEConfig,
        {"residual_threshold": 0.5, "max_iterations": 5},
    )
    for seed, (name, (kind, config, changes)) in enumerate(made.items()):
        sae = kind(config(**plain, **changes))
        numbers(sae, seed)
        if name == "matching_pursuit":
            with torch.no_grad():
                sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.cfg.metadata.hook_name = "blocks.2.hook_resid_post"
        folder = out / "saelens" / name
        sae.save_model(folder)
        x = rows()
        keep(folder, x, sae.encode(x), sae(x))
    batch = s.BatchTopKTrainingSAE(s.BatchTopKTrainingSAEConfig(d_in=D, d_sae=N, k=K, device="cpu"))
    numbers(batch, 50)
    with torch.no_grad():
        batch.topk_threshold.fill_(0.4)
    folder = out / "saelens" / "batchtopk_as_jumprelu"
    batch.save_inference_model(folder)
    sae = s.SAE.load_from_disk(folder)
    x = rows()
    keep(folder, x, sae.encode(x), sae(x))


def dictionary_learning(out: Path) -> None:
    """One of every class."""
    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = {
        "AutoEncoder": d.AutoEncoder(D, N),
        "AutoEncoderNew": d.AutoEncoderNew(D, N),
        "GatedAutoEncoder": d.GatedAutoEncoder(D, N),
        "JumpReluAutoEncoder": d.JumpReluAutoEncoder(D, N),
        "AutoEncoderTopK": AutoEncoderTopK(D, N, K),
        "BatchTopKSAE": BatchTopKSAE(D, N, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D, N, K, [4, 12]),
    }
    for seed, (name, ae) in enumerate(made.items()):
        numbers(ae, 100 + seed)
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": N, "lm_name": "none", "layer": 2}
        if hasattr(ae, "k"):
            trainer["k"] = K
            ae.threshold.fill_(0.4)
        folder = out / "dictionary_learning" / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(ae.state_dict(), folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}, indent=1))
        x = rows()
        keep(folder, x, ae.encode(x), ae.decode(ae.encode(x)))


def sparsify(out: Path) -> None:
    """Autoencoder, transcoder, skip transcoder."""
    from sparsify import SparseCoder, SparseCoderConfig

    for seed, (name, changes) in enumerate(
        {"sae": {}, "transcoder": {"transcode": True}, "skip": {"transcode": True, "skip_connection": True}}.items()
    ):
        coder = SparseCoder(D, SparseCoderConfig(num_latents=N, k=K, **changes))
        numbers(coder, 200 + seed)
        folder = out / "sparsify" / name
        coder.save_to_disk(folder)
        x = rows()
        found = coder.encode(x)
        codes = torch.zeros(ROWS, N).scatter_(1, found.top_indices, found.top_acts)
        keep(folder, x, codes, coder(x).sae_out)


def bypass_overcomplete() -> None:
    """Its `__init__` imports torchvision, which may not fit the build of torch."""
    place = importlib.util.find_spec("overcomplete")
    module = types.ModuleType("overcomplete")
    module.__path__ = list(place.submodule_search_locations)
    sys.modules["overcomplete"] = module


def overcomplete(out: Path) -> None:
    """State dicts, and one whole module."""
    bypass_overcomplete()
    from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, MpSAE, TopKSAE
    from overcomplete.sae.rasae import RATopKSAE

    points = torch.randn(20, D, generator=torch.Generator().manual_seed(3))
    made = {
        "sae": SAE(D, N),
        "sae_bn": SAE(D, N, encoder_module="mlp_bn_1"),
        "topk": TopKSAE(D, N, top_k=K),
        "topk_multiplier": TopKSAE(D, N, top_k=K, dictionary_params={"use_multiplier": True}),
        "jump": JumpSAE(D, N),
        "mp": MpSAE(D, N, k=K),
        "ra": RATopKSAE(D, N, points, top_k=K),
        "batch_topk": BatchTopKSAE(D, N, top_k=K * ROWS),
        "topk_module": TopKSAE(D, N, top_k=K),
    }
    for seed, (name, sae) in enumerate(made.items()):
        numbers(sae, 300 + seed)
        if name == "jump":
            sae.thresholds.data -= 1.5
        x = rows()
        sae.train()
        for _ in range(2):  # running thresholds and statistics
            sae(x)
        sae.eval()
        folder = out / "overcomplete" / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(sae if name in ("topk_module", "batch_topk") else sae.state_dict(), folder / "sae.pt")
        _, codes, y = sae(x)
        keep(folder, x, codes, y)


if __name__ == "__main__":
    torch.manual_seed(0)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for make in (saelens, dictionary_learning, sparsify, overcomplete):
        make(target)
    packages = ("torch", "sae-lens", "dictionary-learning", "overcomplete", "eai-sparsify")
    versions = {name: importlib.metadata.version(name) for name in packages}
    (target / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
