"""The two short ways of the wave front are taken where they hold, and agree with full forwards; where they do not hold
they are not taken, and nothing changes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import mechvis
from mechvis import testing
from mechvis.engine import plain_edit
from mechvis.hooked import HookedViT
from mechvis.units import Unit, units_of
from mechvis.wave import front as waves
from mechvis.wave import head_rows as narrow
from mechvis.wave import wave

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")


@pytest.fixture
def taken(monkeypatch):
    """Which short ways were found to hold, call by call; narrow models count too."""
    found = {"without_keys": [], "head_rows": []}
    monkeypatch.setattr(narrow, "NARROW", 0)
    for name, calls in found.items():
        function = getattr(waves, name)

        def watched(*arguments, function=function, calls=calls):
            calls.append(function(*arguments))
            return calls[-1]

        monkeypatch.setattr(waves, name, watched)
    return {name: lambda calls=calls: [call is not None for call in calls] for name, calls in found.items()}


def wrapped(family, dtype=torch.float64, **settings):
    return mechvis.load(testing.tiny(family, dtype=dtype, **settings), preprocess=testing.tiny_preprocess())


def check(model, units, tolerance, edit="patch", n=3, **how):
    pixels = testing.tiny_input("vit", n=n, dtype=model.dtype)
    other = model.run(
        testing.tiny_input("vit", n=n, seed=5, dtype=model.dtype), capture=sorted({u.site for u in units})
    )
    replacement = (lambda site: None) if edit == "zero" else other.cache.__getitem__
    clean, edited = wave(model.parts, pixels, units, replacement, **how)
    rows = torch.stack([model.run(pixels, edits=[plain_edit(unit, replacement)]).output for unit in units])
    testing.assert_close(clean, model.run(pixels).output, tolerance, "clean")
    testing.assert_close(edited, rows, tolerance, "edited")
    assert float((rows - clean).abs().max()) > 1e-3


# family, does the read-out ask with few queries, can its attention do without keys and values
FAMILIES = [
    ("vit", True, True),
    ("deit-distilled", True, True),
    ("clip-vision", True, True),
    ("beit", True, True),
    ("dinov2", True, True),
    ("dinov2-swiglu", True, True),
    ("siglip-vision", True, True),
    ("beit-mean", False, None),
    ("dinov3", True, False),
]


@pytest.mark.parametrize(("family", "few", "keyless"), FAMILIES)
@pytest.mark.parametrize("edit", ["zero", "patch"])
@pytest.mark.parametrize("at_once", [None, 6])
def test_the_short_ways_are_those_of_full_forwards(family, few, keyless, edit, at_once, taken):
    model = wrapped(family)
    check(model, units_of(model, "heads"), 1e-10, edit, at_once=at_once)
    assert taken["without_keys"]() == [keyless] * few
    assert taken["head_rows"]() == [True] * (2 if few and family != "siglip-vision" else 3)


@pytest.mark.parametrize("family", ["vit", "siglip-vision", "dinov2-swiglu"])
def test_float32(family, taken):
    model = wrapped(family, torch.float32)
    check(model, units_of(model, "heads"), 1e-5)
    assert all(taken["without_keys"]())
    assert all(taken["head_rows"]())


def test_explicit_attention(taken):
    # Hugging Face rounds an explicit softmax to float32 whatever the model's type.
    model = wrapped("vit", attention="eager")
    check(model, units_of(model, "heads"), 1e-6)
    assert all(taken["without_keys"]())


def test_a_stream_with_a_large_mean_and_a_massive_channel(taken):
    """The norm's mean and scale then are far from those of the change."""
    model = wrapped("vit", torch.float32)
    with torch.no_grad():
        model.bare.vit.embeddings.position_embeddings += 20
        model.bare.vit.embeddings.position_embeddings[..., 3] += 500
    check(model, units_of(model, "heads"), 2e-5, "zero")
    assert all(taken["head_rows"]())


def test_other_units_beside_heads(taken):
    model = wrapped("vit")
    units = [Unit(1, "heads", 2), Unit(1, "result", 1), Unit(1, "attn_out"), Unit(1, "neurons", 3), Unit(1, "mlp_out")]
    check(model, [Unit(0, "tokens", 2), Unit(0, "heads", 0), *units, Unit(2, "heads", 1)], 1e-10, at_once=3)
    check(model, [Unit(1, "result", 0), Unit(1, "result", 3)], 1e-10, "zero")
    assert taken["head_rows"]() == [True] * 3


class Squash(nn.Module):
    """Not a product."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.tanh(self.inner(x))

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "inner" else getattr(super().__getattr__("inner"), name)


@pytest.mark.parametrize("where", ["k_proj", "v_proj", "fc1"])
@pytest.mark.parametrize("how", ["hook", "module"])
def test_what_is_no_product_is_not_taken_for_one(where, how, taken):
    """A layer with a forward hook, or one that somebody has put in its place."""
    bare = testing.tiny("vit", dtype=torch.float64)
    for layer in bare.vit.layers:
        owner = layer.mlp if where == "fc1" else layer.attention
        if how == "hook":
            getattr(owner, where).register_forward_hook(lambda module, given, out: torch.tanh(out))
        else:
            setattr(owner, where, Squash(getattr(owner, where)))
    model = mechvis.load(bare.eval(), preprocess=testing.tiny_preprocess())
    check(model, units_of(model, "heads"), 1e-10)
    assert taken["without_keys"]() == [where == "fc1"]
    assert taken["head_rows"]() == [where != "fc1"] * 2


def test_a_norm_of_another_kind_is_noticed(taken):
    class Odd(nn.LayerNorm):
        """Divides by the largest entry."""

        def forward(self, x):
            return x / x.abs().amax(-1, keepdim=True)

    model = wrapped("vit")
    model = HookedViT(
        model.bare, replace(model.parts, blocks=tuple(replace(b, ln2=Odd(16)) for b in model.parts.blocks))
    )
    check(model, units_of(model, "heads"), 1e-10)
    assert taken["head_rows"]() == [False] * 2


def test_many_queries_keep_their_keys(taken):
    """Eight tokens that are read cost more without keys than with."""
    model = wrapped("vit")
    reads = tuple(range(8))
    model = HookedViT(model.bare, replace(model.parts, reads=reads, pool=lambda x: x.mean(1)))
    check(model, units_of(model, "heads"), 1e-10)
    assert taken["without_keys"]() == [False]


def test_the_kernel_makes_the_rows_of_narrow_models(monkeypatch):
    """LayerNorm, LayerScale; the twin here stands for the kernel, which `tests/mechvis/kernels` compares with it."""
    calls = []

    def choose(operation, *tensors):
        calls.append(operation)
        return "triton"

    monkeypatch.setattr(narrow, "choose", choose)
    for family in ("vit", "dinov2", "clip-vision"):
        model = wrapped(family, torch.float32)
        for edit in ("zero", "patch"):
            check(model, units_of(model, "heads"), 1e-5, edit, at_once=6)
            check(model, units_of(model, "heads"), 1e-5, edit)
    assert calls == ["expand_norm"] * 2 * 12


def test_keys_and_values_are_made_for_the_clean_rows_only(taken):
    model = wrapped("vit")
    seen = []
    model.bare.vit.layers[-1].attention.v_proj.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    pixels = testing.tiny_input("vit", n=3, dtype=model.dtype)
    wave(model.parts, pixels, units_of(model, "heads"), lambda site: None)
    assert seen == [3]
