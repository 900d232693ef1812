"""Attribution patching: by finite differences, on models whose answer is known, and where it must fail."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.attribution.atp import SITES, atp, atp_values, exact_effects
from circuits.pairs.pairs import Pairs
from circuits.task import task
from mechvis import edits, testing
from mechvis.errors import BadData, RefusedMethod, UnknownName
from mechvis.testing import planted

# The CLS token is the same on all images before block 0, and a run says that patching it changes nothing.
pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")


def noise_task(family="vit", n=4, **more):
    model = mechvis.load(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = torch.randn(2 * n, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = tuple(map(str, range(n)))
    pairs = Pairs(name="noise", clean=pixels[:n], corrupt=pixels[n:], ids=ids)
    more.setdefault("metric", lambda out, target, contrast, clean: out[..., 0] - out[..., 1].square())
    return task(model, pairs, max_undistinguished=1.0, **more)


def planted_task(model, pairs, **more):
    made = Pairs(
        name=pairs.name, clean=pairs.clean, corrupt=pairs.corrupt, ids=tuple(map(str, range(len(pairs)))),
        clean_labels=pairs.clean_labels, corrupt_labels=pairs.corrupt_labels,
    )  # fmt: skip
    return task(model, made, max_undistinguished=1.0, **more)


@pytest.mark.parametrize("family", ["vit", "dinov3", "beit-mean"])
def test_every_estimate_is_a_derivative(family):
    """Move each kind of component a little towards its base: the metric answers as estimated."""
    made = noise_task(family)
    values, units = atp_values(made, list(SITES), qk_fix=False)
    step, at = 1e-5, slice(0, 4)
    clean = made.model.run(made.clean).output
    before = made.metric(clean, None, None, clean)
    picked = np.random.default_rng(0).choice(len(units), size=24, replace=False)
    picked = [*picked, *(next(i for i, unit in enumerate(units) if unit.kind == kind) for kind in SITES)]
    for i in picked:
        site = units[i].site
        own, other = (made.model.run(pixels, capture=[site]).cache[site] for pixels in (made.clean, made.corrupt))
        edit = units[i].edit("patch", values={site: own + step * (other - own)})
        after = made.metric(made.model.run(made.clean[at], edits=[edit]).output, None, None, clean)
        found = ((before - after) / step).numpy()
        np.testing.assert_allclose(values[i], found, rtol=2e-3, atol=2e-4, err_msg=units[i].name)


@pytest.mark.parametrize("changed", ["query", "key"])
def test_the_qk_fix_sees_through_a_saturated_softmax(changed):
    """methods.md 5.3: true 2.000, AtP 0.0003, QK fix 2.000."""
    made = planted_task(planted.two_token_net(), planted.two_token_pairs(changed), metric="logit_diff")
    kind = changed[0]
    plain, _ = atp_values(made, [kind], qk_fix=False)
    fixed, units = atp_values(made, [kind], qk_fix=True)
    exact = exact_effects(made, units)
    assert exact[0, 0] == pytest.approx(2.0, abs=1e-4)
    assert abs(plain[0, 0]) == pytest.approx(0.0003, abs=1e-4)
    assert fixed[0, 0] == pytest.approx(2.0, abs=1e-4)


def test_the_qk_fix_is_exact_in_the_last_layer_of_a_linear_read_out():
    """Behind the pattern everything is linear there, up to the metric and the norms, which this network has not."""
    model = planted.linear_net()
    made = planted_task(model, planted.linear_pairs(model), metric="logit_diff")
    for kind in ("heads", "v", "attn_out", "mlp_out", "q"):
        values, units = atp_values(made, [kind])
        np.testing.assert_allclose(values, exact_effects(made, units), atol=1e-10)


def test_f3_hides_its_big_edge():
    """AtP of head A on F3: the gradient through tanh is 0.002 where patching gives 16."""
    made = planted_task(planted.saturation_net(), planted.saturation_pairs(), metric="logit_diff")
    result = atp(made, units=["heads", "mlp_out"], verify=3, progress=False)
    effect = dict(zip(result.table["unit"], result.table["effect"], strict=True))
    assert effect["L0H0"] == pytest.approx(0.002, abs=5e-4)
    found = result.provenance["agreement"]
    # One of the three is far off, and the result says so.
    assert found["n_top"] + found["n_random"] == 3
    exact = dict(zip(result.table["unit"], result.table["exact"], strict=True))
    assert exact["L0H0"] == pytest.approx(16.0, abs=1e-3)
    assert found["missed"] == pytest.approx(1.0, abs=0.01)


def test_grad_drop_undoes_cancellation():
    """A head whose direct effect and whose effect through the next layer cancel: its gradient is zero, GradDrop's is
    not.
    """
    net = planted.WiredViT(channels=1, d_model=3, n_layers=2, n_heads=1, d_head=1, d_mlp=1, n_classes=2)
    with torch.no_grad():
        net.embedding[0, 0] = 1.0
        first, second = net.head(0, 0), net.head(1, 0)
        first.v[0, 0] = first.o[0, 1] = 1.0
        second.v[1, 0], second.o[0, 2] = 1.0, -1.0
        net.readout[1] = net.readout[2] = torch.tensor([0.5, -0.5])
        net.readout[0] = torch.tensor([0.1, -0.1])
    model = planted.wrapped(net, "cancelling", class_names=("plus", "minus"))
    pixels = torch.tensor([1.0, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    pairs = Pairs(name="two", clean=pixels[:1], corrupt=pixels[1:], ids=("a",))
    made = task(model, pairs, metric="logit_diff", max_undistinguished=1.0)
    plain, _ = atp_values(made, ["heads"])
    dropped, _ = atp_values(made, ["heads"], grad_drop=True)
    assert abs(plain[0, 0]) < 1e-12
    # Without layer 1 in the backward pass only the direct effect is left, 2; one pass of the other L - 1 = 1.
    assert dropped[0, 0] == pytest.approx(2.0)


def test_grad_drop_by_hand():
    """The definition, with hooks that stop gradients on the bare model's blocks."""
    made = noise_task()
    values, units = atp_values(made, ["heads", "mlp_out"], grad_drop=True)
    total = np.zeros_like(values)
    for dropped in range(3):
        sites = [
            row_site
            for layer in range(3)
            for row_site in (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out")
        ]
        stop = [edits.call(f"blocks.{dropped}.{name}", Tensor_detach) for name in ("hook_attn_out", "hook_mlp_out")]
        with pytest.warns(mechvis.errors.EffectlessEdit):
            run = made.model.run(made.clean, edits=stop, capture=sites, grad=True)
        value = made.metric(run.output, None, None, run.output.detach()).sum()
        other = made.model.run(made.corrupt, capture=sites).cache
        for i, unit in enumerate(units):
            site = unit.site
            (gradient,) = torch.autograd.grad(value, run.cache[site], retain_graph=True, allow_unused=True)
            if gradient is None:
                continue
            product = (run.cache[site].detach() - other[site]) * gradient
            own = product[:, :, unit.index] if unit.kind == "heads" else product
            total[i] += own.flatten(1).sum(1).abs().numpy() / 2
    np.testing.assert_allclose(values, total, atol=1e-12)


def Tensor_detach(x):
    return x.detach()


def test_ablations():
    model = mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = torch.randn(9, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ablation in ("zero", "resample", "mean", "mean_positional"):
        more = {"reference": pixels[6:]} if ablation.startswith("mean") else {}
        made = task(model, pixels[:6], ablation=ablation, metric="logit_diff", **more)
        result = atp(made, units=["heads", "attn_out", "mlp_out"], verify=18, progress=False)
        found = result.provenance["agreement"]
        assert found["spearman"] > 0.6, (ablation, found)
        with testing.assert_untouched(model.bare):
            atp(made, verify=0, progress=False)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: atp(t, units="head"), UnknownName, "unknown kind of component 'head'. Nearest: heads"),
        (lambda t: atp(t, units=[]), BadData, "no kind of component"),
        (lambda t: atp(t, units=["heads", "heads"]), BadData, "repeats a kind"),
        (lambda t: atp(t.with_metric("kl")), RefusedMethod, "its gradient is exactly zero"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error) as caught:
        call(noise_task(metric="logit_diff"))
    assert words in str(caught.value).replace("\n", " ")


def test_means_of_queries_are_refused():
    model = mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = task(model, pixels[:4], ablation="mean", reference=pixels[4:], metric="logit_diff")
    with pytest.raises(BadData, match="means of heads and writes only, not of 'q'"):
        atp(made, units="q")
