"""The information bottleneck: F11, the formula against numerical integration, the tail against hooks."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange

import mechvis
from mechvis import edits, testing
from mechvis.attribution import Iba, attribute
from mechvis.attribution.bottleneck_profile import BottleneckProfile, bottleneck_profile
from mechvis.attribution.methods.iba import bits_of, bottleneck
from mechvis.attribution.question import Question
from mechvis.attribution.tail import stream_at, tail
from mechvis.errors import BadData, NotFinite, OutOfRange, UnknownName
from mechvis.target import target_of
from mechvis.testing.bottleneck_pool import READ, bottleneck_pool

DOUBLE = torch.float64


def noise(n, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def fit(pool, **more):
    mean, spread = pool.stream.mean((0, 1), keepdim=True), pool.stream.std((0, 1), keepdim=True)
    return bottleneck(pool.loss, pool.stream, mean, spread, noise(len(pool.stream)), **more)


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=4, dtype=DOUBLE)


class TestBottleneckPool:
    @pytest.mark.parametrize("beta", [0.1, 1.0, 10.0, 100.0])
    def test_only_tokens_that_are_read_carry_bits(self, beta):
        pool = bottleneck_pool()
        others = [token for token in range(12) if token not in READ]
        assert fit(pool, beta=beta)[:, others].max() <= 0.03
        long = fit(pool, beta=beta, steps=60)
        assert long[:, others].max() <= 0.003
        assert (long[:, READ[0]] > long[:, others].amax(1)).all()

    def test_beta_sets_the_scale(self):
        bits = [fit(bottleneck_pool(), beta=beta, steps=60).mean(0) for beta in (0.1, 1.0, 10.0, 100.0)]
        totals = [float(some.sum()) for some in bits]
        assert totals == sorted(totals, reverse=True) and totals[0] > 20 * totals[3]
        assert all(some[2] > some[5] for some in bits)

    def test_other_weights_another_map(self):
        bits = fit(bottleneck_pool(weights={0: 0.5, 9: 0.5}), steps=60)
        assert set(bits.mean(0).topk(2).indices.tolist()) == {0, 9}
        assert bits[:, 2].max() <= 0.003


class TestFormula:
    def test_bits_are_the_divergence_of_two_gaussians(self):
        """Values that pass are N(lam h + (1 - lam) mu, (1 - lam)^2 s^2); nothing known: N(mu, s^2)."""
        alpha, h, mu, s = 0.7, 1.3, 0.2, 0.5
        lam = 1 / (1 + math.exp(-alpha))
        one = torch.distributions.Normal(lam * h + (1 - lam) * mu, (1 - lam) * s)
        other = torch.distributions.Normal(mu, s)
        by_torch = float(torch.distributions.kl_divergence(one, other)) / math.log(2)
        found = bits_of(*(torch.full((1, 1, 1), value, dtype=DOUBLE) for value in (alpha, h, mu, s)))
        assert float(found) == pytest.approx(by_torch, rel=1e-6)

    def test_never_negative_and_zero_when_nothing_passes(self):
        alpha = torch.linspace(-12, 12, 49, dtype=DOUBLE)[:, None, None]
        for h in (-3.0, 0.0, 2.0):
            bits = bits_of(alpha, torch.full_like(alpha, h), torch.zeros_like(alpha), torch.ones_like(alpha))
            assert (bits >= -1e-12).all() and bits[0] < 1e-6
            assert (bits.diff(dim=0) >= -1e-12).all()
        assert torch.isfinite(bits_of(alpha * 50, alpha, 0 * alpha, 0 * alpha + 1)).all(), "open gates are not infinite"


class TestTail:
    def test_it_is_the_model_with_a_hook(self, model, pixels):
        for layer in (0, 1, 2):
            site = f"blocks.{layer}.hook_resid_pre"
            ask = Question(model=model, pixels=pixels, target=target_of(model, model.run(pixels).logits), ids=None)
            stream = stream_at(ask, layer)
            changed = stream + torch.randn(stream.shape, dtype=DOUBLE, generator=noise(1)[0])
            hooked = model.run(pixels, [edits.call(site, lambda x, new=changed: new)]).logits
            testing.assert_close(tail(model, changed, layer, (12, 12)), hooked, 1e-12, f"layer {layer}")

    def test_the_whole_fit_equals_one_with_hooks(self, model, pixels):
        method = Iba(layer=1, steps=3, samples=2)
        found = attribute(model, pixels, method, target=2, progress=False)
        ask = Question(model=model, pixels=pixels, target=None, ids=torch.arange(4))
        site = "blocks.1.hook_resid_pre"
        stream = model.run(pixels, capture=[site]).cache[site]

        def loss(noised, rows):
            run = model.run(pixels[rows], [edits.call(site, lambda x: noised)], grad=True)
            return torch.nn.functional.cross_entropy(run.logits, torch.full((len(rows),), 2), reduction="none")

        patches = stream[:, 1:]
        draws = [ask.generator(i, "iba noise 1") for i in range(4)]
        moments = patches.mean(1, keepdim=True), patches.std(1, keepdim=True)
        bits = bottleneck(loss, stream, *moments, draws, steps=3, samples=2, open_tokens=1)
        assert found.maps.reshape(4, 9) == pytest.approx(bits[:, 1:].numpy(), rel=1e-5)
        assert not found.table["prefix"].to_numpy().any(), "an open token carries no counted bits"


class TestMethod:
    def test_only_the_patch_that_is_read(self):
        bare = testing.hand_wired_vit(dtype=DOUBLE)
        with torch.no_grad():
            bare.classifier.weight.mul_(40)  # so that noise can change the class
        wired = mechvis.load(bare, preprocess=testing.tiny_preprocess())
        images = testing.hand_wired_images(4, dtype=DOUBLE)[0]
        reference = testing.hand_wired_images(50, seed=1, dtype=DOUBLE)[0]
        method = Iba(layer=0, steps=60, beta=1.0, reference=reference)
        found = attribute(wired, images, method, target="predicted", progress=False)
        flat = found.maps.reshape(4, 9)
        assert (flat.argmax(1) == 4).all()
        assert flat[:, 4].min() > 5 * np.delete(flat, 4, 1).max()

    def test_cost(self, model, pixels):
        found = attribute(model, pixels, Iba(steps=3, samples=5), target=1, progress=False)
        assert found.facts["forwards"] == 4 * (3 * 5 + 1 + 1) and found.facts["backwards"] == 4 * 3 * 5

    def test_a_reference_bounds_the_prefix_too(self, model, pixels):
        reference = testing.tiny_input("vit", n=20, seed=9, dtype=DOUBLE)
        found = attribute(model, pixels, Iba(layer=2, reference=reference), target=1, progress=False)
        assert (found.table["prefix"].to_numpy() > 0).all()
        assert found.arrays["bits"] == pytest.approx(found.table["sum"].to_numpy() + found.table["prefix"].to_numpy())
        assert found.facts["settings"]["reference"] == 20
        with pytest.raises(BadData, match="says only that the reference had 20 images: pass its pixels"):
            _ = found.method
        first = attribute(model, pixels, Iba(layer=0, reference=reference), target=1, progress=False)
        # CLS before block 0 is the same in all images: its bits are about nothing but the floor of the spread.
        assert (first.table["prefix"].to_numpy() < 0.2 * first.arrays["bits"]).all()

    def test_equal_total_bits(self, model, pixels):
        found = attribute(model, pixels, Iba(steps=8, samples=4, total_bits=12.0), target=1, progress=False)
        assert found.arrays["bits"] == pytest.approx(np.full(4, 12.0), rel=0.1)
        assert len(np.unique(found.arrays["beta"])) > 1

    def test_clip_takes_the_similarity(self):
        clip = mechvis.load(
            testing.tiny("clip", dtype=DOUBLE), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
        )
        pixels = testing.tiny_input("clip", dtype=DOUBLE)
        with pytest.raises(BadData, match="take loss='similarity' for one text"):
            attribute(clip, pixels, Iba(), target="a star", progress=False)
        found = attribute(clip, pixels, Iba(loss="similarity", steps=4), target="a star", progress=False)
        assert found.maps.shape == (3, 3, 3) and (found.table["prefix"].to_numpy() > 0).all()

    @pytest.mark.parametrize(
        "asked, error, said",
        [
            (dict(beta=0.0), OutOfRange, "beta=0.0"),
            (dict(steps=0), OutOfRange, "steps=0"),
            (dict(loss="mse"), UnknownName, "unknown loss 'mse'"),
            (dict(total_bits=-1.0), OutOfRange, "total_bits=-1.0"),
            (dict(layer=9), OutOfRange, "layer"),
        ],
    )
    def test_bad_settings(self, model, pixels, asked, error, said):
        with pytest.raises(error, match=said):
            attribute(model, pixels, Iba(**asked), target=1, progress=False)

    def test_bad_reference_and_loss(self, model, pixels):
        with pytest.raises(BadData, match="a reference of 1 images has no spread"):
            attribute(model, pixels, Iba(reference=pixels[:1]), target=1, progress=False)
        stream = torch.zeros(1, 2, 3)
        with pytest.raises(NotFinite, match="NaN or Inf in step 1"):
            bottleneck(lambda x, rows: x.sum((1, 2)) * math.nan, stream, stream, stream + 1, noise(1))


class TestProfile:
    def test_rows_and_reload(self, model, pixels, tmp_path):
        reference = testing.tiny_input("vit", n=20, seed=9, dtype=DOUBLE)
        found = bottleneck_profile(model, pixels, Iba(reference=reference, steps=4), target=1, progress=False)
        assert found.table["layer"].to_list() == [0, 1, 2]
        assert ((found.table["low"] <= found.table["bits"]) & (found.table["bits"] <= found.table["high"])).all()
        alone = attribute(model, pixels, Iba(reference=reference, steps=4, layer=2), target=1, progress=False)
        assert found.arrays["maps"][2] == pytest.approx(alone.maps)
        assert found.table["bits"][2] == pytest.approx(alone.arrays["bits"].mean())
        assert ((found.table["patches"] >= 1) & (found.table["patches"] <= 9)).all()
        again = BottleneckProfile.load(found.save(tmp_path / "profile"))
        assert again.table.equals(found.table)
        assert again.plot().axes

    def test_it_needs_a_reference(self, model, pixels):
        with pytest.raises(BadData, match="a profile needs the spread of every token"):
            bottleneck_profile(model, pixels, Iba())


def test_effective_number_of_patches():
    from mechvis.attribution.bottleneck_profile import _effective

    maps = np.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert _effective(rearrange(maps, "i (d a) -> i d a", d=2)) == pytest.approx([4, 1, 0])
