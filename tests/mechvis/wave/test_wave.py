"""The wave front agrees with one full forward per unit, and with a hook on the bare model that knows nothing of us."""

import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.engine import plain_edit
from mechvis.errors import BadData
from mechvis.means import means
from mechvis.units import KINDS, Unit, units_of
from mechvis.wave import PerImage, bytes_per_row, rows_at_once, wave

# The CLS token is the same in every image before block 0, so patching it there changes nothing, and a run says so.
pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")

FAMILIES = ("vit", "vit-base", "deit", "deit-distilled", "clip-vision", "clip-classifier", "clip-zero-shot")


def wrapped(family, dtype=torch.float64, attention="sdpa"):
    name = "clip" if family == "clip-zero-shot" else family
    model = mechvis.load(
        testing.tiny(name, dtype=dtype, attention=attention),
        preprocess=testing.tiny_preprocess(),
        tokenizer=testing.Words(),
    )
    return model.classifier(["circle", "star", "a blue square"]) if family == "clip-zero-shot" else model


def replacement_of(model, edit, pixels, units):
    if edit == "zero":
        return lambda site: None
    sites = sorted({unit.site for unit in units})
    if edit == "mean_positional":
        reference = means(model, testing.tiny_input("vit", n=4, seed=9, dtype=model.dtype), sites)
        return lambda site: reference[site][None]
    other = testing.tiny_input("vit", n=len(pixels), seed=5, dtype=model.dtype)
    return model.run(other, capture=sites).cache.__getitem__


def twin(model, pixels, units, replacement, base=()):
    first = [plain_edit(unit, replacement) for unit in base]
    rows = [model.run(pixels, edits=[*first, plain_edit(unit, replacement)]).output for unit in units]
    return model.run(pixels, edits=first).output, torch.stack(rows)


def check(model, units, edit, tolerance, base=(), at_once=None, n=3):
    pixels = testing.tiny_input("vit", n=n, dtype=model.dtype)
    replacement = replacement_of(model, edit, pixels, [*units, *base])
    clean, edited = wave(model.parts, pixels, units, replacement, base, at_once)
    expected_clean, expected = twin(model, pixels, units, replacement, base)
    testing.assert_close(clean, expected_clean, tolerance, "clean")
    testing.assert_close(edited, expected, tolerance, "edited")
    assert float((expected - expected_clean).abs().max()) > 1e-3  # the comparison is of something
    return edited


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edit", ["zero", "mean_positional", "patch"])
@pytest.mark.parametrize("kind", KINDS)
def test_wave_is_the_plain_twin(family, edit, kind):
    model = wrapped(family)
    units = units_of(model, kind)
    check(model, units[::5] if kind == "neurons" else units, edit, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_explicit_attention(kind):
    # Hugging Face rounds an explicit softmax to float32 whatever the model's type: 1e-10 is out of reach there.
    model = wrapped("vit", attention="eager")
    check(model, units_of(model, kind)[::3], "patch", 1e-6)


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "clip-zero-shot"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_float32(family, attention):
    model = wrapped(family, torch.float32, attention)
    for kind in ("heads", "tokens", "mlp_out"):
        check(model, units_of(model, kind), "mean_positional", 1e-5)


def test_mixed_kinds_in_one_pass():
    model = wrapped("deit-distilled")
    units = sorted(
        [
            Unit(layer, kind, index)
            for layer in range(3)
            for kind, index in (("heads", 2), ("result", 1), ("neurons", 7))
        ]
        + [Unit(layer, kind) for layer in range(3) for kind in ("attn_out", "mlp_out")]
        + [Unit(layer, "tokens", 4) for layer in range(3)],
        key=lambda unit: unit.layer,
    )
    for edit in ("zero", "mean_positional", "patch"):
        check(model, units, edit, 1e-10)


@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 2]])
def test_layers_subset(layers):
    model = wrapped("vit")
    for kind in ("heads", "tokens", "attn_out"):
        check(model, units_of(model, kind, layers), "zero", 1e-10)


def test_outputs_come_in_the_order_of_the_units():
    """Units of a layer enter by kind, but answers come as asked."""
    model = wrapped("vit")
    units = units_of(model, "heads")
    forward = check(model, units, "zero", 1e-10)
    shuffled = [units[i] for i in (3, 0, 2, 1, 7, 6, 5, 4, 11, 9, 10, 8)]
    places = [units.index(unit) for unit in shuffled]
    testing.assert_close(check(model, shuffled, "zero", 1e-10), forward[places], 1e-12)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1000])
def test_groups_of_rows_change_nothing(at_once):
    model = wrapped("clip-zero-shot")
    for kind in ("heads", "tokens", "mlp_out", "attn_out"):
        check(model, units_of(model, kind), "patch", 1e-10, at_once=at_once)


@pytest.mark.parametrize("edit", ["zero", "mean_positional", "patch"])
@pytest.mark.parametrize("at_once", [None, 3, 5])
def test_heads_that_are_already_gone(edit, at_once):
    model = wrapped("deit-distilled")
    base = [Unit(0, "heads", 1), Unit(1, "heads", 3), Unit(2, "heads", 0)]
    units = [unit for unit in units_of(model, "heads") if unit not in base]
    check(model, units, edit, 1e-10, base=base, at_once=at_once)


def test_a_head_that_is_gone_already_has_no_effect():
    model = wrapped("vit")
    pixels = testing.tiny_input("vit", dtype=model.dtype)
    gone = Unit(1, "heads", 2)
    clean, edited = wave(model.parts, pixels, [gone], lambda site: None, base=[gone])
    testing.assert_close(edited[0], clean, 1e-14)


@pytest.mark.parametrize("family", ["vit", "deit-distilled", "clip-vision"])
def test_a_torch_hook_on_the_bare_model_says_the_same(family):
    """An oracle that shares no code: zero the head's columns in front of the output projection."""
    bare = testing.tiny(family, dtype=torch.float64)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input(family, dtype=torch.float64)
    if family == "clip-vision":
        projections = [layer.self_attn.out_proj for layer in bare.vision_model.encoder.layers]
    else:
        projections = [layer.attention.o_proj for layer in (bare.vit if family == "vit" else bare.deit).layers]
    units = units_of(model, "heads")
    _, edited = wave(model.parts, pixels, units, lambda site: None)
    for unit, logits in zip(units, edited, strict=True):

        def remove(module, arguments, head=unit.index):
            z = arguments[0].clone()
            z[..., head * 4 : (head + 1) * 4] = 0
            return (z,)

        handle = projections[unit.layer].register_forward_pre_hook(remove)
        with torch.no_grad():
            output = bare(pixels)
        handle.remove()
        expected = output.image_embeds if family == "clip-vision" else output.logits
        testing.assert_close(logits, expected, 1e-10, unit.name)


def test_layer_scale():
    """A family with LayerScale: the change of a head goes through it as well."""
    from dataclasses import replace

    model = wrapped("vit")
    gains = torch.rand(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    blocks = tuple(replace(b, scale1=lambda x: x * gains[0], scale2=lambda x: x * gains[1]) for b in model.parts.blocks)
    scaled = mechvis.hooked.HookedViT(model.bare, replace(model.parts, blocks=blocks))
    for kind in KINDS:
        for edit in ("zero", "mean_positional"):
            check(scaled, units_of(scaled, kind)[::3], edit, 1e-10)


def test_a_read_out_of_all_tokens():
    """Mean pooling: the last block may leave nothing out."""
    from dataclasses import replace

    model = wrapped("vit")
    pooled = mechvis.hooked.HookedViT(model.bare, replace(model.parts, reads=None, pool=lambda tokens: tokens.mean(1)))
    for kind in KINDS:
        check(pooled, units_of(pooled, kind)[::3], "zero", 1e-10)


def test_no_units():
    model = wrapped("vit")
    pixels = testing.tiny_input("vit", dtype=model.dtype)
    clean, edited = wave(model.parts, pixels, [], lambda site: None)
    assert edited.shape == (0, 3, 8)
    testing.assert_close(clean, model.run(pixels).output, 1e-12)


def test_model_is_left_as_found():
    bare = testing.tiny("vit", dtype=torch.float64)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("vit", dtype=torch.float64)
    before = pixels.clone()
    with testing.assert_untouched(bare):
        wave(model.parts, pixels, units_of(model, "heads"), lambda site: None)

        def broken(site):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            wave(model.parts, pixels, units_of(model, "heads"), broken)
    assert torch.equal(pixels, before)


def allocated(function):
    """Largest sum of bytes that torch held at once during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("kind", ["heads", "tokens", "mlp_out"])
@pytest.mark.parametrize("at_once", [None, 8])
def test_memory_is_as_predicted(kind, at_once):
    bare = testing.tiny("vit", hidden_size=64, intermediate_size=256, image_size=48, num_hidden_layers=4)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess(48))
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    units = units_of(model, kind)[:64]
    rows = (1 + len(units)) * 2
    kept, working = bytes_per_row(model.parts, 4)
    predicted = rows * kept + (rows if at_once is None else at_once) * working
    measured = allocated(lambda: wave(model.parts, pixels, units, lambda site: None, at_once=at_once))
    assert predicted / 3 < measured < 1.3 * predicted


def test_rows_at_once_follow_the_widest_activation_or_the_tokens():
    model = wrapped("vit")
    assert rows_at_once(model.parts, 4) // 2 == rows_at_once(model.parts, 8)
    assert rows_at_once(model.parts, 4) == 4 * 2**20 // (10 * 48 * 4)
    wide = testing.tiny("vit", intermediate_size=10**5, num_hidden_layers=1)
    assert rows_at_once(mechvis.load(wide, preprocess=testing.tiny_preprocess()).parts, 4) == 80


# groups of patches, heads of an attention pooling

POOLED = ("siglip-vision", "siglip-zero-shot")


def other_model(family):
    if family == "siglip-zero-shot":
        clip = mechvis.load(
            testing.tiny("siglip", dtype=torch.float64),
            preprocess=testing.tiny_preprocess(),
            tokenizer=testing.Words(),
        )
        return clip.classifier(["circle", "star", "a blue square"])
    return mechvis.load(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())


def masks_of(model, n, groups=2, seed=3):
    """Random groups, prefix tokens included; one of them empty in one image."""
    generator = torch.Generator().manual_seed(seed)
    members = torch.rand(n, groups, model.parts.n_tokens, generator=generator) < 0.4
    members[0, 0] = False
    return members


@pytest.mark.parametrize("family", ["vit", "dinov3", "dinov2-registers", "beit-mean", *POOLED])
@pytest.mark.parametrize("edit", ["zero", "mean_positional", "patch"])
def test_groups_that_differ_between_images(family, edit):
    """The plain twin is an edit with a mask `[row token]`."""
    model, n = other_model(family), 3
    pixels = testing.tiny_input("vit", n=n, dtype=model.dtype)
    layers = range(len(model.parts.blocks))
    units = [Unit(layer, "patches", i, f"group {i}") for layer in layers for i in range(2)]
    values, members = replacement_of(model, edit, pixels, units), masks_of(model, n)
    replacement = PerImage(values, lambda unit: members[:, unit.index])
    clean, edited = wave(model.parts, pixels, units, replacement, at_once=4)
    testing.assert_close(clean, model.run(pixels).output, 1e-10)
    largest = 0.0
    for unit, row in zip(units, edited, strict=True):
        new = values(unit.site)
        full = torch.zeros_like(model.run(pixels, capture=unit.site).cache[unit.site]) if new is None else new
        twin = unit.edit("patch", values={unit.site: full.expand(n, -1, -1)}, tokens=members[:, unit.index])
        expected = model.run(pixels, edits=[twin]).output
        testing.assert_close(row, expected, 1e-10, unit.name)
        largest = max(largest, float((expected - clean).abs().max()))
        testing.assert_close(row[0] if unit.index == 0 else clean[0], clean[0], 1e-12)  # empty in image 0
    assert largest > 1e-3


@pytest.mark.parametrize("family", ["vit", "dinov3", "beit-mean"])
def test_groups_of_the_same_tokens(family):
    model = other_model(family)
    lists = ((1, 2, 5), (0,), tuple(range(model.parts.n_tokens)))
    units = [Unit(layer, "patches", i, str(i), tokens) for layer in (0, 2) for i, tokens in enumerate(lists)]
    for edit in ("zero", "mean_positional", "patch"):
        check(model, units, edit, 1e-10, at_once=5)
    one = [Unit(1, "patches", 0, "one", (4,))], [Unit(1, "tokens", 4)]
    pixels = testing.tiny_input("vit", dtype=model.dtype)
    both = [wave(model.parts, pixels, units, lambda site: None)[1] for units in one]
    assert torch.equal(*both)


def test_groups_without_masks_are_refused():
    model = other_model("vit")
    with pytest.raises(BadData, match="nothing says which"):
        wave(model.parts, testing.tiny_input("vit", dtype=model.dtype), [Unit(0, "patches", 0, "a")], lambda site: None)


@pytest.mark.parametrize("family", POOLED)
@pytest.mark.parametrize("edit", ["zero", "mean_positional", "patch"])
def test_heads_of_the_pooling(family, edit):
    model = other_model(family)
    units = units_of(model, "pool_heads")
    check(model, units, edit, 1e-10)
    mixed = sorted([*units[1:3], Unit(0, "heads", 1), Unit(2, "neurons", 5), Unit(1, "tokens", 3)])
    check(model, mixed, edit, 1e-10, at_once=4)
    # A head that is already gone, in every row.
    check(model, mixed, edit, 1e-10, base=[units[0], Unit(1, "heads", 2)], at_once=4)


@pytest.mark.parametrize("family", ["dinov3", "beit-mean", "siglip-vision"])
def test_neurons_in_one_product(family):
    """LayerScale, a gate, a pooling over all tokens."""
    model = other_model(family)
    for edit in ("zero", "patch"):
        check(model, units_of(model, "neurons", [1, 2])[::7], edit, 1e-10, at_once=5)


def test_rows_of_the_last_block_hold_the_tokens_that_are_read_only():
    """All neurons of the last block: rows of one token each, whatever the image's size."""
    bare = testing.tiny("vit", image_size=96, hidden_size=16, intermediate_size=512)
    model = mechvis.load(bare, preprocess=testing.tiny_preprocess(96))
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    units = units_of(model, "neurons", [2])
    whole = (1 + len(units)) * bytes_per_row(model.parts, 4)[0]
    assert allocated(lambda: wave(model.parts, pixels, units, lambda site: None, at_once=8)) < 0.3 * whole
