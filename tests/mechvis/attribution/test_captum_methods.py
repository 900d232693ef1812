"""captum through the face, GlobEnc and IIA."""

import numpy as np
import pytest
import torch
from captum import attr as captum

import mechvis
from mechvis import testing
from mechvis.attribution import (
    IIA,
    Captum,
    Chefer,
    GlobEnc,
    GradientShap,
    InputIG,
    InputXGradient,
    Saliency,
    SmoothGrad,
    attribute,
)
from mechvis.attribution.methods.glob_enc import received
from mechvis.attribution.methods.through_captum import CLAIMS
from mechvis.errors import OutOfRange, RefusedMethod, UnknownName
from mechvis.interop import captum as interop

DOUBLE = torch.float64
TARGET = torch.tensor([1, 4, 2])


@pytest.fixture(scope="module")
def bare():
    return testing.rand_vit()


@pytest.fixture(scope="module")
def model(bare):
    return mechvis.load(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", dtype=DOUBLE)


def maps(model, pixels, method, **more):
    return attribute(model, pixels, method, **{"target": TARGET, "progress": False, **more}).maps.reshape(-1, 9)


def pooled(attributions):
    return attributions.detach().sum(1).unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2)).reshape(-1, 9).numpy()


def test_gradient_methods_equal_captum_on_the_bare_model(bare, model, pixels):
    plain = lambda x: bare(x).logits  # noqa: E731
    given = pixels.clone().requires_grad_(True)
    expected = pooled(captum.Saliency(plain).attribute(given, target=TARGET))
    np.testing.assert_allclose(maps(model, pixels, Saliency()), expected, rtol=1e-5)
    expected = pooled(captum.InputXGradient(plain).attribute(given, target=TARGET))
    np.testing.assert_allclose(maps(model, pixels, InputXGradient()), expected, rtol=1e-4, atol=1e-6)
    asked = maps(model, pixels, Captum(options=(("n_steps", 40),)))
    ours = maps(model, pixels, InputIG(steps=100))
    assert np.abs(asked - ours).max() < 1e-3 * np.abs(ours).max(), "two rules of integration"
    occlusion = maps(model, pixels, Captum(name="occlusion"))
    gone = pixels.clone()
    gone[:, :, :4, 4:8] = 0
    with torch.no_grad():
        drop = (plain(pixels) - plain(gone)).gather(1, TARGET[:, None])[:, 0]
    np.testing.assert_allclose(occlusion[:, 1], drop, rtol=1e-5)


def test_forms_of_the_score(bare, model, pixels):
    with torch.no_grad():
        gone = pixels.clone()
        gone[:, :, :4, :4] = 0
        clean, without = bare(pixels).logits, bare(gone).logits
    for form, read in (("prob", lambda x: x.softmax(1)), ("logprob", lambda x: x.log_softmax(1))):
        found = maps(model, pixels, Captum(name="feature_ablation"), form=form)
        drop = (read(clean) - read(without)).gather(1, TARGET[:, None])[:, 0]
        np.testing.assert_allclose(found[:, 0], drop, rtol=1e-4)
    found = maps(model, pixels, Captum(name="feature_ablation"), contrast=0)
    drop = (clean - without).gather(1, TARGET[:, None])[:, 0] - (clean - without)[:, 0]
    np.testing.assert_allclose(found[:, 0], drop, rtol=1e-4)


QUICK = {
    "integrated_gradients": (("n_steps", 50),),
    "shapley_value_sampling": (("n_samples", 2),),
    "kernel_shap": (("n_samples", 40),),
    "lime": (("n_samples", 40),),
    "gradient_shap": (("n_samples", 4),),
    "noise_tunnel": (("nt_samples", 2), ("n_steps", 4)),
}


@pytest.mark.parametrize("name", [name for name in CLAIMS if name != "shapley_values"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_claims_are_right(model, pixels, name):
    asked = Captum(name=name, options=QUICK.get(name, ()))
    claims = asked.CLAIMS
    forth, back = (
        attribute(model, pixels[:2], asked, target=one, contrast=other, progress=False)
        for one, other in ((1, 2), (2, 1))
    )
    if name == "lime":  # a regression with a penalty: signs turn, up to where it stops
        assert np.corrcoef(forth.maps.ravel(), back.maps.ravel())[0, 1] < -0.9
    else:
        turned = np.abs(forth.maps + back.maps).max() <= 1e-4 * np.abs(forth.maps).max()
        assert turned == claims.signed
    if claims.complete:
        assert forth.table["gap"].max() < 0.01
    elif name != "kernel_shap":  # whose regression is made to add up, as far as its weights go
        difference = (
            forth.table["score"].to_numpy()
            - model.face("logit_diff", target=1, contrast=2)(torch.zeros_like(pixels[:2]))[:, 0].detach().numpy()
        )
        gap = np.abs(forth.maps.sum((1, 2)) - difference) / np.abs(difference)
        assert gap.max() > 1e-4, "a method that always adds up should say so"
    again = attribute(model, pixels[:2], asked, target=1, contrast=2, seed=1, progress=False)
    assert np.array_equal(again.maps, forth.maps) != claims.random


def test_every_method_of_the_face_has_claims():
    assert set(CLAIMS) == set(interop.METHODS)
    assert not SmoothGrad.CLAIMS.signed and SmoothGrad().CLAIMS.random and GradientShap.CLAIMS.signed
    assert not Captum(name="noise_tunnel", options=(("of", "saliency"),)).CLAIMS.signed


def test_refusals(model, pixels):
    """N10: DeepLift equals Input x Gradient on a transformer, without saying so."""
    with pytest.raises(RefusedMethod, match="silently"):
        maps(model, pixels, Captum(name="deep_lift"))
    with pytest.raises(UnknownName, match="option of saliency"):
        maps(model, pixels, Captum(name="saliency", options=(("n_steps", 3),)))
    with pytest.raises(OutOfRange, match="at least one sample"):
        maps(model, pixels, SmoothGrad(samples=0))
    with pytest.raises(OutOfRange, match="at least one"):
        maps(model, pixels, GradientShap(samples=0))


# GlobEnc


def test_globenc_by_hand():
    """methods2.md 18.1: norms 1.8028, .6, .6."""
    pattern = torch.tensor([[[[0.5, 0.3, 0.2]] * 3]])
    carried = torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]]])
    found = received(pattern, carried, torch.ones(1, 3, 2), centre=False)
    assert found[0, 0].tolist() == pytest.approx([1.8028, 0.6, 0.6], abs=1e-4)
    nothing = received(torch.eye(3)[None, None], torch.zeros(1, 1, 3, 2), torch.tensor([[[3.0, 1.0]] * 3]))
    assert torch.equal(nothing[0] > 0, torch.eye(3).bool()), "no values: only the stream passes by"


def test_globenc_against_a_plain_version(bare, model, pixels):
    out = bare(pixels, output_hidden_states=True)
    result = torch.eye(10, dtype=DOUBLE).expand(3, -1, -1)
    with torch.no_grad():
        for layer, block in enumerate(bare.vit.layers):
            x = out.hidden_states[layer]
            normal, own = block.layernorm_before(x), block.attention
            q, k, v = (p(normal).unflatten(2, (4, 4)) for p in (own.q_proj, own.k_proj, own.v_proj))
            pattern = torch.einsum("iqhe,ikhe->ihqk", q, k).mul(0.5).softmax(-1)
            weight = own.o_proj.weight.T.unflatten(0, (4, 4))
            vectors = torch.einsum("ihqk,ikhe,hed->iqkd", pattern, v, weight)
            middle = x + vectors.sum(2) + own.o_proj.bias
            vectors = vectors + torch.eye(10, dtype=DOUBLE)[None, :, :, None] * x[:, :, None]
            norms = (vectors - vectors.mean(-1, keepdim=True)).norm(dim=-1) / middle.std(-1, correction=0)[..., None]
            result = norms / norms.sum(-1, keepdim=True) @ result
    np.testing.assert_allclose(maps(model, pixels, GlobEnc()), result[:, 0, 1:], rtol=1e-5)
    assert maps(model, pixels, GlobEnc(rownorm=False)).sum() > 10 * maps(model, pixels, GlobEnc()).sum()


# IIA


def test_iia_of_one_point_is_relevance_of_the_last_block(model, pixels):
    one = maps(model, pixels, IIA(outer=1, inner=1, rule="end"))
    np.testing.assert_allclose(one, maps(model, pixels, Chefer(start=-1)), rtol=1e-8)


def test_iia_against_a_plain_version(pixels):
    bare = testing.rand_vit()
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    total = 0
    for k in range(3):
        stream = model.run(pixels * (k + 0.5) / 3, capture=["blocks.2.hook_resid_pre"]).cache["blocks.2.hook_resid_pre"]
        block = bare.vit.layers[2]
        own, normal = block.attention, block.layernorm_before(stream)
        q, key, v = (p(normal).unflatten(2, (4, 4)) for p in (own.q_proj, own.k_proj, own.v_proj))
        pattern = torch.einsum("iqhe,ikhe->ihqk", q, key).mul(0.5).softmax(-1).detach()
        for m in range(2):
            scaled = (pattern * (m + 0.5) / 2).requires_grad_(True)
            x = stream + own.o_proj(torch.einsum("ihqk,ikhe->iqhe", scaled, v).flatten(2))
            x = x + block.mlp(block.layernorm_after(x))
            logits = bare.classifier(bare.vit.layernorm(x)[:, 0])
            (gradient,) = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), scaled)
            total = total + (scaled * gradient).relu().detach() / 6
    np.testing.assert_allclose(maps(model, pixels, IIA(outer=3, inner=2)), total.mean(1)[:, 0, 1:], rtol=1e-5)


def test_iia_errors(model, pixels):
    with pytest.raises(OutOfRange, match="at least one point"):
        maps(model, pixels, IIA(outer=0))
    with pytest.raises(UnknownName, match="rule of IIA"):
        maps(model, pixels, IIA(rule="start"))
