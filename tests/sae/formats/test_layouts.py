"""Layouts of libraries that are not at hand: files written by hand, codes and output computed by hand."""

import io
import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sae
from mechvis.errors import BadData, MechvisWarning, RefusedMethod, ShapeMismatch
from sae.architectures import named
from sae.ends import Ends
from sae.formats import load, save
from sae.formats.building import built

D, N, K = 8, 16, 3


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def rows(width: int = D, n: int = 12) -> torch.Tensor:
    return (random(n, width, seed=7) + 0.3) * (1 + 2 * torch.rand(n, 1, generator=torch.Generator().manual_seed(5)))


def weights(d_out: int = D) -> dict[str, torch.Tensor]:
    """[d n] encoder, [n d] decoder, biases."""
    return {
        "W_enc": 0.5 * random(D, N, seed=1),
        "b_enc": 0.3 * random(N, seed=2),
        "W_dec": 0.5 * random(N, d_out, seed=3),
        "b_dec": 0.2 * random(d_out, seed=4),
    }


def largest(z: torch.Tensor, k: int) -> torch.Tensor:
    """A mask of the k largest of each row."""
    return torch.zeros_like(z).scatter_(1, z.topk(k, dim=1).indices, 1.0).bool()


def agrees(d, x, codes, y):
    with torch.no_grad():
        assert (d.encode(x) - codes).abs().max() < 1e-5
        assert (d(x) - y).abs().max() < 1e-5 * max(1.0, float(y.abs().max()))


def again(d, x, tmp_path, form):
    """Written and read once more."""
    e = load(save(d, tmp_path / "again", format=form), form)
    with torch.no_grad():
        assert (e.encode(x) - d.encode(x)).abs().max() < 1e-5
        assert (e(x) - d(x)).abs().max() < 1e-5 * max(1.0, float(d(x).abs().max()))
    return e


# -- Prisma ------------------------------------------------------------------------------------------------------------


def prisma_files(folder, tensors, **config):
    torch.save(tensors, folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps({"hook_point_layer": 3, "layer_subtype": "hook_mlp_out", **config}))


def test_prisma_layer_norm_is_unbiased_with_epsilon_on_the_way_in_alone(tmp_path):
    t, x = weights(), rows()
    prisma_files(tmp_path, t, normalize_activations="layer_norm", activation_fn_str="relu", cls_token_only=True)
    d = load(tmp_path)
    mu, sigma = x.mean(1, keepdim=True), x.std(1, keepdim=True, unbiased=True)
    z = ((x - mu) / (sigma + 1e-5) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    agrees(d, x, z.relu(), (z.relu() @ t["W_dec"] + t["b_dec"]) * sigma + mu)
    assert list(d.ends.reads) == ["blocks.3.hook_mlp_out"] and d.provenance["tokens"] == "cls"
    assert again(d, x, tmp_path, "prisma").provenance["tokens"] == "cls"


@pytest.mark.parametrize("rule", ["topk", "gated", "constant_norm"])
def test_prisma_other_rules(rule, tmp_path):
    t, x = weights(), rows()
    if rule == "gated":
        del t["b_enc"]
        t |= {"b_gate": 0.2 * random(N, seed=8), "b_mag": 0.2 * random(N, seed=9), "r_mag": 0.2 * random(N, seed=10)}
        prisma_files(tmp_path, t, normalize_activations="none", architecture="gated")
        pi = (x - t["b_dec"]) @ t["W_enc"]
        codes = ((pi + t["b_gate"]) > 0) * (pi * t["r_mag"].exp() + t["b_mag"]).relu()
        y = codes @ t["W_dec"] + t["b_dec"]
    elif rule == "topk":
        prisma_files(tmp_path, t, normalize_activations="none", activation_fn_str="topk", activation_fn_kwargs={"k": K})
        z = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
        codes = z.relu() * largest(z, K)
        y = codes @ t["W_dec"] + t["b_dec"]
    else:
        prisma_files(tmp_path, t, normalize_activations="constant_norm_rescale")
        scale = x.norm(dim=1, keepdim=True) / D**0.5
        codes = ((x / scale - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
        y = (codes @ t["W_dec"] + t["b_dec"]) * scale
    d = load(tmp_path)
    agrees(d, x, codes, y)
    again(d, x, tmp_path, "prisma")


def test_prisma_configuration_inside_the_pickle(tmp_path, monkeypatch):
    """As released: an object of a class that is not installed here."""
    for name in ("vit_prisma", "vit_prisma.sae", "vit_prisma.sae.config"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    class VisionModelSAERunnerConfig:
        pass

    VisionModelSAERunnerConfig.__module__ = "vit_prisma.sae.config"
    VisionModelSAERunnerConfig.__qualname__ = "VisionModelSAERunnerConfig"
    sys.modules["vit_prisma.sae.config"].VisionModelSAERunnerConfig = VisionModelSAERunnerConfig
    cfg = VisionModelSAERunnerConfig()
    cfg.__dict__ |= {
        "activation_fn_str": "relu",
        "normalize_activations": "layer_norm",
        "hook_point_layer": 9,
        "layer_subtype": "hook_resid_post",
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "use_patches_only": True,
    }
    torch.save({"cfg": cfg, "state_dict": weights()}, tmp_path / "n_images_100.pt")
    monkeypatch.undo()
    d = load(tmp_path)
    assert list(d.ends.reads) == ["blocks.9.hook_resid_post"]
    assert d.architecture.normalise == "layer_norm" and d.provenance["tokens"] == "patches"


def test_prisma_transcoder_is_unnormalised_with_the_input_and_says_so(tmp_path):
    t, x = weights(), rows()
    t["b_dec_out"] = 0.2 * random(D, seed=11)
    prisma_files(tmp_path, t, normalize_activations="layer_norm", is_transcoder=True, out_hook_point_layer=3)
    with pytest.warns(MechvisWarning, match="mean and standard deviation of its input"):
        d = load(tmp_path)
    mu, sigma = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    z = ((x - mu) / (sigma + 1e-5) - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    agrees(d, x, z.relu(), (z.relu() @ t["W_dec"] + t["b_dec_out"]) * sigma + mu)
    assert d.ends.transcodes and list(d.ends.writes) == ["blocks.3.hook_mlp_out (written)"]
    with pytest.raises(RefusedMethod, match="train with 'mean_square'"):
        sae.start(named("relu")(n_latents=4, normalise="input_norm"), {"a": x, "b": x}, reads="a", writes="b")
    t["W_skip"] = random(D, D)
    prisma_files(tmp_path, t, normalize_activations="layer_norm", is_transcoder=True)
    with pytest.raises(RefusedMethod, match="skip connection"):
        load(tmp_path)


def test_prisma_plain_skip_transcoder(tmp_path):
    t, x = weights(d_out=6), rows()
    t |= {"b_dec": 0.2 * random(D, seed=4), "b_dec_out": 0.2 * random(6, seed=11), "W_skip": random(6, D, seed=12)}
    prisma_files(tmp_path, t, normalize_activations="none", is_transcoder=True)
    codes = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    agrees(load(tmp_path), x, codes, codes @ t["W_dec"] + t["b_dec_out"] + x @ t["W_skip"].T)


def test_prisma_without_its_configuration_is_refused(tmp_path):
    torch.save(weights(), tmp_path / "weights.pt")
    with pytest.raises(BadData, match=r"without its configuration.*How rows are scaled"):
        load(tmp_path, "prisma")
    with pytest.raises(BadData, match=r"of no format that is known.*weights.pt"):
        load(tmp_path)


# -- visaebench --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("activation", ["batch_topk", "topk", "relu"])
def test_visaebench_decoder_either_way(activation, turned, tmp_path):
    t, x = weights(), rows()
    tensors = {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T.contiguous() if turned else t["W_dec"],
        "decoder.bias": t["b_dec"],
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"activation": activation, "input_dim": D, "hidden_dim": N, "k": K, "threshold": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    z = x @ t["W_enc"] + t["b_enc"]
    codes = {"relu": z.relu(), "topk": z.relu() * largest(z, K), "batch_topk": z.relu() * (z > 0.5)}[activation]
    d = load(tmp_path)
    agrees(d, x, codes, codes @ t["W_dec"] + t["b_dec"])
    again(d, x, tmp_path, "visaebench")


def test_visaebench_square_decoder_is_refused(tmp_path):
    tensors = {"encoder.weight": random(8, 8), "encoder.bias": random(8), "decoder.weight": random(8, 8)}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"activation": "relu", "input_dim": 8, "hidden_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShapeMismatch, match="does not say which axis latents are on"):
        load(tmp_path)


def test_visaebench_with_names_of_overcomplete(tmp_path):
    t, x = weights(), rows()
    atoms = torch.nn.functional.normalize(t["W_dec"], dim=1)
    tensors = {
        "encoder.final_block.0.weight": t["W_enc"].T.contiguous(),
        "encoder.final_block.0.bias": t["b_enc"],
        "dictionary._weights": atoms,
        "dictionary.multiplier": torch.tensor(0.5),
    }
    torch.save(tensors, tmp_path / "sae.pt")
    config = {"activation": "batch_topk", "input_dim": D, "hidden_dim": N, "k": K, "threshold": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    z = x @ t["W_enc"] + t["b_enc"]
    codes = z.relu() * (z > 0.5)
    agrees(load(tmp_path), x, codes, codes @ atoms * np.exp(0.5))


# -- openai, circuit-tracer, saev --------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["ReLU", "Identity"])
def test_openai_topk_is_layer_normed(after, tmp_path):
    t, x = weights(), rows()
    state = {
        "pre_bias": t["b_dec"],
        "latent_bias": t["b_enc"] - 2,  # few entries above zero: Identity keeps negative ones
        "encoder.weight": t["W_enc"].T.contiguous(),
        "decoder.weight": t["W_dec"].T.contiguous(),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": after},
    }
    torch.save(state, tmp_path / "autoencoder.pt")
    d = load(tmp_path / "autoencoder.pt")
    mu, sigma = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    z = ((x - mu) / (sigma + 1e-5) - t["b_dec"]) @ t["W_enc"] + t["b_enc"] - 2
    codes = (z.relu() if after == "ReLU" else z) * largest(z, K)
    assert after == "ReLU" or bool((codes < 0).any())
    agrees(d, x, codes, (codes @ t["W_dec"] + t["b_dec"]) * sigma + mu)
    if after == "ReLU":
        again(d, x, tmp_path, "openai")


def test_openai_relu_and_tied(tmp_path):
    t, x = weights(), rows()
    state = {"pre_bias": t["b_dec"], "latent_bias": t["b_enc"], "encoder.weight": t["W_enc"].T.contiguous()}
    torch.save(state, tmp_path / "a.pt")
    codes = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    d = load(tmp_path)
    agrees(d, x, codes, codes @ t["W_enc"].T + t["b_dec"])
    again(d, x, tmp_path, "openai")
    with pytest.raises(RefusedMethod, match="layer-normed where they are TopK and nowhere else"):
        save(sae.start(sae.TopK(n_latents=N, k=K), {"a": x}), tmp_path / "b", format="openai")


@pytest.mark.parametrize("threshold", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer_decoder_lies_the_other_way(threshold, skip, tmp_path):
    t, x = weights(d_out=6), rows()
    tensors = {
        "W_enc": t["W_enc"].T.contiguous(),
        "W_dec": t["W_dec"].T.contiguous(),
        "b_enc": t["b_enc"],
        "b_dec": t["b_dec"],
    }
    z = x @ t["W_enc"] + t["b_enc"]
    codes = z.relu()
    if threshold:
        tensors["threshold"] = random(N, seed=20).abs()
        codes = codes * (z > tensors["threshold"])
    y = codes @ t["W_dec"] + t["b_dec"]
    if skip:
        tensors["W_skip"] = random(6, D, seed=21)
        y = y + x @ tensors["W_skip"].T
    save_file(tensors, tmp_path / "layer_4.safetensors")
    d = load(tmp_path)
    assert d.ends.transcodes and list(d.ends.reads) == ["blocks.4.read"]
    agrees(d, x, codes, y)
    again(d, x, tmp_path, "circuit_tracer")


def test_gemma_scope_npz(tmp_path):
    t, x = weights(), rows()
    threshold = random(N, seed=20).abs()
    np.savez(tmp_path / "params.npz", **{k: v.numpy() for k, v in t.items()}, threshold=threshold.numpy())
    z = x @ t["W_enc"] + t["b_enc"]
    codes = z * (z > threshold)
    d = load(tmp_path)
    agrees(d, x, codes, codes @ t["W_dec"] + t["b_dec"])
    assert not d.ends.transcodes
    np.savez(tmp_path / "params.npz", W_enc=np.array([object()]))
    with pytest.raises(Exception, match=r"plain arrays|no .npz file"):
        load(tmp_path)


@pytest.mark.parametrize("activation", ["Relu", "TopK", "BatchTopK", "old"])
def test_saev_header_and_signs(activation, tmp_path):
    t, x = weights(), rows()
    t["b_enc"] = t["b_enc"] - 3
    if activation == "old":
        header = {"d_vit": D, "exp_factor": 2, "sparsity_coeff": 1e-4}
    else:
        params = {} if activation == "Relu" else {"top_k": K}
        header = {
            "schema": 2,
            "cfg": {"d_vit": D, "exp_factor": 2, "activation": {"cls": activation, "params": params}},
        }
    body = io.BytesIO()
    torch.save(t, body)
    (tmp_path / "sae.pt").write_bytes(json.dumps(header).encode() + b"\n" + body.getvalue())
    d = load(tmp_path / "sae.pt")
    z = x @ t["W_enc"] + t["b_enc"]
    codes = z.relu() if activation in ("Relu", "old") else z * largest(z, K)
    assert activation in ("Relu", "old") or bool((codes < 0).any())
    agrees(d, x, codes, codes @ t["W_dec"] + t["b_dec"])
    again(d, x, tmp_path, "saev")


def test_saev_encoder_that_is_the_decoder_is_warned_about(tmp_path):
    """Defect of older versions of saev: W_enc was a view of W_dec."""
    t = weights()
    body = io.BytesIO()
    torch.save(t | {"W_enc": t["W_dec"].T}, body)
    (tmp_path / "sae.pt").write_bytes(b"{}\n" + body.getvalue())
    with pytest.warns(MechvisWarning, match="overwrote one with the other"):
        d = load(tmp_path)
    with torch.no_grad():
        d.W_dec.zero_()
    assert bool((d.W_enc != 0).all())


# -- crosscoders -------------------------------------------------------------------------------------------------------


def test_ckkissane_crosscoder(tmp_path):
    t = {"W_enc": random(2, D, N), "W_dec": random(N, 2, D), "b_enc": random(N), "b_dec": random(2, D)}
    torch.save(t, tmp_path / "cc_weights.pt")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D, "dict_size": N}))
    with pytest.warns(MechvisWarning, match="scale rows before you use it"):
        d = load(tmp_path)
    x = random(12, 2, D)
    codes = (torch.einsum("bsd,sdn->bn", x, t["W_enc"]) + t["b_enc"]).relu()
    y = torch.einsum("bn,nsd->bsd", codes, t["W_dec"]) + t["b_dec"]
    agrees(d, x.reshape(12, -1), codes, y.reshape(12, -1))
    assert list(d.ends.reads) == ["site 0", "site 1"]


@pytest.mark.parametrize("rule", [1, 2, 3, 4, 5])
def test_crosscoder_learning_ranks_by_its_code_normalisation(rule, tmp_path):
    t = {
        "encoder.weight": random(2, D, N),
        "encoder.bias": random(N),
        "decoder.weight": random(2, N, D) * torch.tensor([1.0, 0.3])[:, None, None],
        "decoder.bias": random(2, D),
        "code_normalization_id": torch.tensor(rule),
        "k": torch.tensor(K, dtype=torch.int),
        "threshold": torch.tensor([4.0, 2.0]) if rule == 5 else torch.tensor(4.0),
    }
    save_file(t, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"sites": ["before", "after"]}))
    d = load(tmp_path)
    x = random(12, 2, D)
    f = (torch.einsum("bsd,sdn->bn", x, t["encoder.weight"]) + t["encoder.bias"]).relu()
    norms = t["decoder.weight"].norm(dim=2)
    joint = norms.square().sum(0).sqrt()
    c = {1: norms.sum(0), 2: joint, 3: joint + 0.1 * norms.sum(0), 4: torch.ones(N), 5: None}[rule]
    if rule == 5:
        by_site = [f * (f * norms[s] > t["threshold"][s]) for s in range(2)]
        codes = torch.maximum(*by_site)
    else:
        codes = f * (f * c > t["threshold"])
        by_site = [codes, codes]
    y = torch.stack([by_site[s] @ t["decoder.weight"][s] for s in range(2)], 1) + t["decoder.bias"]
    assert 0 < (codes > 0).float().mean() < 0.9
    agrees(d, x.reshape(12, -1), codes, y.reshape(12, -1))
    assert list(d.ends.reads) == ["before", "after"]
    again(d, x.reshape(12, -1), tmp_path, "crosscoders")


def test_crosscoder_with_one_scale_is_folded_and_with_several_refused(tmp_path):
    site = {"a": 3 * random(200, D), "b": 3 * random(200, D).flip(0)}
    d = sae.start(named("batch_topk_crosscoder")(n_latents=N, k=K), site)
    with torch.no_grad():
        d.budget_thresholds.fill_(0.5)
    x = torch.cat([site["a"], site["b"]], 1)
    again(d, x, tmp_path, "crosscoders")
    site["b"] = site["b"] * 2
    d = sae.start(named("batch_topk_crosscoder")(n_latents=N, k=K), site)
    with torch.no_grad():
        d.budget_thresholds.fill_(0.5)
    with pytest.raises(RefusedMethod, match="several factors"):
        save(d, tmp_path / "b", format="crosscoders")
    with pytest.raises(RefusedMethod, match="crosscoder"):
        save(sae.start(sae.TopK(n_latents=N, k=K), {"a": rows()}), tmp_path / "b", format="crosscoders")


# -- what a file would say is exactly what is built --------------------------------------------------------------------


def test_centred_or_not_is_a_setting_that_travels(tmp_path):
    t, x = weights(), rows()
    tensors = {**t, "W_enc": t["W_enc"].T.contiguous()}
    d = {
        centre: built(
            named("relu")(n_latents=N, normalise="none", centre=centre),
            Ends(reads={"a": D}),
            tensors,
            where="here",
            provenance={},
        )
        for centre in (True, False)
    }
    for centre, one in d.items():
        z = (x - t["b_dec"] * centre) @ t["W_enc"] + t["b_enc"]
        agrees(one, x, z.relu(), z.relu() @ t["W_dec"] + t["b_dec"])
        one.save(tmp_path / str(centre), fold=False)
        agrees(load(tmp_path / str(centre)), x, z.relu(), z.relu() @ t["W_dec"] + t["b_dec"])
