"""The test kit tests what it says it tests: F2's published numbers, and every kind of trace a run might leave."""

import random

import numpy as np
import pytest
import torch

from mechvis import edits
from mechvis.errors import EffectlessEdit, UnknownName
from mechvis.models.load import wrap
from mechvis.testing import (
    ShortcutViT,
    assert_close,
    assert_untouched,
    shortcut_images,
    shortcut_vit,
    tiny,
    tiny_families,
    tiny_input,
    tiny_preprocess,
    untouched,
)

# F2: the table of the method specification, tolerance 0.02


def js(p, q):
    """Jensen-Shannon divergence per image, in nats."""
    middle = (p + q) / 2
    return 0.5 * ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1))


@pytest.fixture(scope="module")
def images():
    return shortcut_images()


@pytest.fixture(scope="module")
def table(images):
    """Per ablated head (None: none): predictions on the three versions of every image."""
    model = shortcut_vit()
    heads = [None, *((layer, head) for layer in range(2) for head in range(4))]
    found = {}
    for unit in heads:
        edit = [] if unit is None else [edits.zero(f"blocks.{unit[0]}.attn.hook_z", heads=[unit[1]])]
        logits = [
            model.run(x, edits=edit).logits for x in (images.pixels, images.without_object, images.without_context)
        ]
        p, p_fg, p_bg = (x.softmax(-1) for x in logits)
        found[unit] = {
            "p_bg": p_bg,
            "BIG": js(p, p_bg),
            "FIG": js(p, p_fg),
            "right": logits[0].argmax(-1) == images.labels,
        }
    return found


def summary(row):
    big, fig = float(row["BIG"].mean()), float(row["FIG"].mean())
    return {"BIG": big, "FIG": fig, "BIR": big / (big + fig), "accuracy": float(row["right"].double().mean())}


def scores(table, unit, where=slice(None)):
    clean, row = table[None], table[unit]
    raw = clean["BIG"] - row["BIG"]
    return float(raw[where].mean()), float((raw - js(clean["p_bg"], row["p_bg"]))[where].mean())


pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")  # inert heads are inert


@pytest.mark.parametrize(
    "unit,expected",
    [
        (None, {"BIG": 0.097, "FIG": 0.027, "BIR": 0.781, "accuracy": 0.675}),
        ((1, 1), {"BIG": 0.005, "FIG": 0.070, "BIR": 0.073, "accuracy": 1.0}),
        ((0, 0), {"accuracy": 0.275, "BIR": 0.928}),
    ],
)
def test_shortcut_table(table, unit, expected):
    got = summary(table[unit])
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=0.02), f"{unit} {name}"


def test_shortcut_scores(table, images):
    assert scores(table, (1, 1)) == pytest.approx((0.0918, 0.074), abs=0.02)
    assert scores(table, (0, 0)) == pytest.approx((0.0929, -0.090), abs=0.02)
    for unit in [(0, 1), (0, 2), (1, 3)]:
        assert scores(table, unit) == (0.0, 0.0)
    assert scores(table, (1, 0))[0] < 0
    ranking = sorted((unit for unit in table if unit), key=lambda unit: -scores(table, unit)[1])
    assert ranking[0] == (1, 1)  # guarded
    assert max((unit for unit in table if unit), key=lambda unit: scores(table, unit)[0]) == (0, 0)  # raw: the pitfall


def test_shortcut_pitfall_of_true_positives(table, images):
    right, conflict = table[None]["right"], ~images.agree
    assert torch.equal(right, images.agree)
    assert scores(table, (0, 0), right)[0] == pytest.approx(0.0101, abs=0.005)
    assert scores(table, (1, 1), right)[0] == pytest.approx(0.0080, abs=0.005)
    assert scores(table, (0, 0), right)[0] > scores(table, (1, 1), right)[0]
    assert scores(table, (1, 1), conflict)[1] == pytest.approx(0.248, abs=0.02)
    assert scores(table, (0, 0), conflict)[1] < 0.11


def test_shortcut_groups(table, images):
    for unit, worst in ((None, 0.0), ((1, 1), 1.0)):
        right = table[unit]["right"]
        assert float(right[~images.agree].double().mean()) == worst and right[images.agree].all()


def test_shortcut_hook_zeroing_is_weight_zeroing(images):
    model = shortcut_vit()
    for layer in range(2):
        for head in range(4):
            bare = ShortcutViT()
            with torch.no_grad():
                bare.layers[layer].o_proj.weight[:, 4 * head : 4 * head + 4] = 0
                ablated = model.run(
                    images.pixels, edits=[edits.zero(f"blocks.{layer}.attn.hook_z", heads=[head])]
                ).logits
                assert_close(ablated, bare(images.pixels), 1e-10)


def test_shortcut_wiring(images):
    cache = shortcut_vit().run(images.pixels, capture=["*hook_pattern", "*hook_embed"]).cache
    own = cache["pattern", 0][:, 0].diagonal(dim1=-2, dim2=-1)
    assert (own > 1 - 1e-12).all()  # head (0, 0): every token looks at itself
    on_object = (cache["pattern", 1][:, 0, 0, 1:].unflatten(1, (4, 4)) * images.masks).sum((1, 2))
    assert (on_object > 1 - 1e-6).all()
    on_context = (cache["pattern", 1][:, 1, 0, 1:].unflatten(1, (4, 4)) * ~images.masks).sum((1, 2))
    assert (on_context > 1 - 1e-6).all()


def test_shortcut_images(images):
    assert len(images) == 200 and images.pixels.shape == (200, 5, 4, 4) and images.pixels.dtype == torch.float64
    assert (images.masks.sum((1, 2)) == 6).all() and int(images.agree.sum()) == 135
    assert torch.equal(images.without_object + images.without_context, images.pixels)
    assert torch.equal(shortcut_images(50).pixels, images.pixels[:50])
    assert not torch.equal(shortcut_images(50, seed=1).labels, images.labels[:50])


# tiny models


def test_tiny_models_leave_the_random_state_alone_and_repeat():
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for family in tiny_families():
        one, same, other = tiny(family), tiny(family), tiny(family, seed=1)
        for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b) and (name == "logit_scale" or not torch.equal(a, c)), name
            assert name == "logit_scale" or (a != 0).all(), f"{family} {name} hides zeros"
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate() or untouched.IGNORED
    assert np.array_equal(state[2], np.random.get_state()[1])  # noqa: NPY002


def test_tiny_overrides_and_unknown_names():
    assert tiny("vit", num_hidden_layers=1, num_labels=5).config.num_labels == 5
    assert tiny("clip", num_attention_heads=2).text_model.config.num_attention_heads == 2
    assert tiny("deit", attention="eager", dtype=torch.float64).config._attn_implementation == "eager"
    with pytest.raises(UnknownName, match=r"unknown tiny family 'vti'. Nearest: vit"):
        tiny("vti")


# assert_untouched finds every trace


def _grad(model):
    model(torch.ones(1, 4)).sum().backward()


TRACES = {
    "hook": lambda m: m[0].register_forward_hook(lambda *a: None),
    "pre-hook": lambda m: m[0].register_forward_pre_hook(lambda *a: None),
    "backward hook": lambda m: m[0].register_full_backward_hook(lambda *a: None),
    "train flag": lambda m: m[1].train(),
    "requires_grad": lambda m: m[0].weight.requires_grad_(False),
    "grad": _grad,
    "value": lambda m: m[0].weight.data.add_(1),
    "version": lambda m: m[0].weight.detach().mul_(1),
    "dtype": lambda m: m.double(),
    "parameter": lambda m: setattr(m[0], "weight", torch.nn.Parameter(m[0].weight.detach().clone())),
    "attribute": lambda m: setattr(m[0], "name", "x"),
    "forward": lambda m: setattr(m[0], "forward", lambda x: x),
    "module": lambda m: m.__setitem__(1, torch.nn.Linear(4, 4).eval()),
    "rng torch": lambda m: torch.rand(1),
    "rng numpy": lambda m: np.random.rand(),  # noqa: NPY002
    "rng python": lambda m: random.random(),
}


@pytest.mark.parametrize("trace", TRACES)
def test_every_trace_is_found(trace, monkeypatch):
    monkeypatch.setattr(untouched, "IGNORED", ())
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).eval()
    with pytest.raises(AssertionError, match="not left as found"), assert_untouched(model):
        TRACES[trace](model)


def test_a_changed_config_is_found():
    model = tiny("vit")
    with pytest.raises(AssertionError, match="config"), assert_untouched(model):
        model.set_attn_implementation("eager")


def test_hooks_on_the_wrapped_model_are_found():
    model = wrap(tiny("vit"), preprocess=tiny_preprocess())
    with pytest.raises(AssertionError, match=r"hooks model\.blocks\.1\.attn\.hook_z"), assert_untouched(model):
        model.add_hook("blocks.1.attn.hook_z", lambda x, hook: None)


def test_global_hooks_are_found():
    with pytest.raises(AssertionError, match="hooks global"), assert_untouched(torch.nn.Linear(2, 2)):
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *a: None)
    handle.remove()


def test_a_trace_beside_an_exception_is_found_too():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="training") as error, assert_untouched(model):
        model.eval()
        raise RuntimeError("from inside")
    assert isinstance(error.value.__context__, RuntimeError)
    with pytest.raises(RuntimeError, match="from inside"), assert_untouched(model):
        raise RuntimeError("from inside")


def test_parts_can_be_left_out():
    with assert_untouched(torch.nn.Linear(2, 2), ignore=("rng",)):
        torch.rand(1)


def test_assert_close():
    one = torch.ones(3)
    assert_close(one, one, 0)
    assert_close(one * 100, one * 100.5, 0.01)
    for other, words in (
        (one * 1.1, "largest difference 1.000e-01"),
        (one.double(), "float64"),
        (one[:2], r"\[2\]"),
        (one * float("nan"), "NaN"),
    ):
        with pytest.raises(AssertionError, match=words):
            assert_close(other, one, 1e-3)


def test_an_inert_head_warns():
    model = shortcut_vit()
    with pytest.warns(EffectlessEdit, match="changed nothing"):
        model.run(tiny_input_of_shortcut(), edits=[edits.zero("blocks.0.attn.hook_z", heads=[1])])


def tiny_input_of_shortcut():
    return shortcut_images(2).pixels


def test_tiny_inputs():
    assert tiny_input("vit").shape == (3, 3, 12, 12) and tiny_input("clip-text").dtype == torch.int64
    assert ((tiny_input("clip-text", n=7) == 49).sum(1) == 1).all()
