"""SAELens itself: its files loaded here, ours loaded there; codes and output of both, to 1e-5 of the largest number.

It runs where sae-lens is installed; `tests/sae/formats` has files that it wrote, for everywhere else.
"""

import pytest
import torch

import sae
from sae.architectures import named
from sae.formats import load, save

sae_lens = pytest.importorskip("sae_lens")

D, N, K = 8, 16, 3
SITE = "blocks.2.hook_resid_post"


def rows() -> torch.Tensor:
    g = torch.Generator().manual_seed(7)
    return (torch.randn(200, D, generator=g) + 0.4) * (1 + 2 * torch.rand(200, 1, generator=g))


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).detach().abs().max() / want.detach().abs().max())


def theirs(kind: str, **settings):
    """A dictionary of SAELens with something in every parameter."""
    module = getattr(sae_lens, f"{kind}SAE", None) or getattr(sae_lens, kind)
    config = getattr(sae_lens, f"{kind}SAEConfig", None) or getattr(sae_lens, f"{kind}Config")
    found = module(config(d_in=D, d_sae=N, device="cpu", **settings))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in found.named_parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
            if name == "threshold":
                p.abs_()
            if kind == "MatchingPursuit" and name == "W_dec":
                p.div_(p.norm(dim=1, keepdim=True))
    return found


TRANSCODES = {"d_out": 6, "apply_b_dec_to_input": False}
THEIRS = [
    ("Standard", {}),
    ("Standard", {"apply_b_dec_to_input": False}),
    ("Standard", {"normalize_activations": "layer_norm"}),
    ("Standard", {"normalize_activations": "constant_norm_rescale"}),
    ("Gated", {}),
    ("JumpReLU", {}),
    ("TopK", {"k": K}),
    ("TopK", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("MatchingPursuit", {"residual_threshold": 0.5}),
    ("Transcoder", TRANSCODES),
    ("SkipTranscoder", TRANSCODES),
    ("JumpReLUTranscoder", TRANSCODES),
]
OURS = [
    ("relu", {}),
    ("relu", {"decoder": "free", "normalise": "mean_norm"}),
    ("relu", {"normalise": "layer_norm"}),
    ("relu", {"normalise": "token_norm"}),
    ("gated", {}),
    ("jumprelu", {"l0": 4.0}),
    ("topk", {"k": K}),
    ("topk", {"k": K, "decoder": "free"}),
    ("batch_topk", {"k": K, "normalise": "mean_square", "decoder": "free"}),
    ("matryoshka", {"k": K, "groups": (0.25, 0.75)}),
    ("matching_pursuit", {"k": K, "normalise": "none"}),
]


@pytest.mark.parametrize(("kind", "settings"), THEIRS)
def test_their_files_mean_the_same_here(kind, settings, tmp_path):
    found, x = theirs(kind, **settings), rows()
    found.save_model(tmp_path / "theirs")
    d = load(tmp_path / "theirs")
    assert off(d.encode(x), found.encode(x)) < 1e-5
    assert off(d(x), found(x)) < 1e-5


@pytest.mark.parametrize(("name", "settings"), OURS)
def test_our_files_mean_the_same_there(name, settings, tmp_path):
    x = rows()
    d = sae.start(named(name)(n_latents=N, **settings), {SITE: x})
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, p in d.named_parameters():
            if key != "W_dec" or d.architecture.decoder == "free":
                p.add_(0.2 * torch.randn(p.shape, generator=g))
        if "threshold" in d.state_dict():
            d.threshold.copy_(d.threshold.abs() if d.threshold.ndim else torch.tensor(0.4))
    found = sae_lens.SAE.load_from_disk(save(d, tmp_path / "ours", format="saelens"))
    assert found.cfg.metadata.hook_name == SITE
    codes = d.folded().encode(x) if name in ("topk", "batch_topk") else d.encode(x)
    assert off(found.encode(x), codes) < 1e-5
    assert off(found(x), d(x)) < 1e-5


def test_what_their_trainer_saves_for_inference(tmp_path):
    """BatchTopK becomes JumpReLU there, with rows folded."""
    found = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=N, k=K, device="cpu"))
    with torch.no_grad():
        found.topk_threshold.fill_(0.05)
        found.W_dec.mul_(1 + torch.rand(N, 1, generator=torch.Generator().manual_seed(3)))
    found.save_inference_model(tmp_path / "theirs")
    again, d = sae_lens.SAE.load_from_disk(tmp_path / "theirs"), load(tmp_path / "theirs")
    assert d.architecture.NAME == "jumprelu"
    assert off(d.encode(rows()), again.encode(rows())) < 1e-5
    assert off(d(rows()), again(rows())) < 1e-5
