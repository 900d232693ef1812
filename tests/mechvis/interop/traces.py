"""What test_nnsight.py runs in a process of its own, since importing nnsight changes a process for good.

Every function `check_*` is one check. nnsight reads the source of the blocks that trace, so they have to be in a file.
"""

import gc
import json
import sys
import threading
import traceback
import warnings
import weakref
from dataclasses import replace

import torch

import mechvis
from mechvis import block as plain
from mechvis import edits
from mechvis.clip import ZeroShotHead
from mechvis.errors import BadData, ShapeMismatch
from mechvis.hooked import HookedViT
from mechvis.interop.nnsight import trace
from mechvis.models.load import wrap
from mechvis.run import ACTIVE
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess

PIXELS = tiny_input("vit")
OTHER = tiny_input("vit", seed=9, n=2)


def vit():
    return wrap(tiny("vit"), preprocess=tiny_preprocess())


def zero_shot():
    clip = wrap(tiny("clip"), preprocess=tiny_preprocess())
    prompts = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))
    head = ZeroShotHead(prompts / prompts.norm(dim=-1, keepdim=True), clip.logit_scale.detach())
    return HookedViT(clip.bare, replace(clip.vision.parts, head=head), preprocess=tiny_preprocess())


def check_every_site_of_vit():
    every_site(vit(), PIXELS)


def check_every_site_of_zero_shot_clip():
    every_site(zero_shot(), PIXELS)


def check_every_site_of_a_text_tower():
    model = wrap(tiny("clip-text"))
    every_site(model, tiny_input("clip-text"))


def every_site(model, inputs):
    traced = trace(model)
    with torch.no_grad():
        for name in model.graph.names:
            with traced.trace(inputs):
                value = traced.get(name).output.save()
                logits = traced.output.save()
            run = model.run(inputs, capture=[name])
            assert torch.equal(value, run.cache[name]), name
            assert torch.equal(logits, run.output), name


def check_nnsight_on_the_bare_model_gives_the_same():
    """An oracle that knows nothing of ours: the same ablation and the same z by nnsight on the user's module."""
    from nnsight import NNsight

    bare = tiny("vit")
    model, theirs = wrap(bare, preprocess=tiny_preprocess()), NNsight(bare)
    for layer, head in ((0, 1), (1, 2), (2, 3)):
        with torch.no_grad(), theirs.trace(PIXELS):
            theirs.vit.layers[layer].attention.o_proj.input[..., 4 * head : 4 * head + 4] = 0
            logits = theirs.output.logits.save()
        site = f"blocks.{layer}.attn.hook_z"
        assert torch.equal(model.run(PIXELS, edits=edits.zero(site, heads=[head])).logits, logits), site
        with torch.no_grad(), theirs.trace(PIXELS):
            z = theirs.vit.layers[layer].attention.o_proj.input.save()
        assert torch.equal(model.run(PIXELS, capture=site).cache[site].flatten(2), z), site


def check_edits_in_place_are_our_edits():
    model, ours = vit(), edits
    traced = trace(model)
    for site, edit, where in [
        ("blocks.1.attn.hook_z", ours.zero, {"heads": [1]}),
        ("blocks.0.attn.hook_q", ours.zero, {"heads": [3]}),
        ("blocks.2.attn.hook_v", ours.zero, {"heads": [0]}),
        ("blocks.1.attn.hook_result", ours.zero, {"heads": [2]}),
    ]:
        head = where["heads"][0]
        with torch.no_grad(), traced.trace(PIXELS):
            traced.get(site).output[:, :, head] = 0
            logits = traced.output.save()
        assert torch.equal(logits, model.run(PIXELS, edits=edit(site, **where)).logits), site
        assert not torch.equal(logits, model(PIXELS)), site
    for site in ("blocks.0.attn.hook_pattern", "blocks.2.attn.hook_attn_scores"):
        with torch.no_grad(), traced.trace(PIXELS):
            traced.get(site).output[:, 2] = 0
            logits = traced.output.save()
        assert torch.equal(logits, model.run(PIXELS, edits=ours.zero(site, heads=[2])).logits), site


def check_edits_by_assignment_are_our_edits():
    model = vit()
    traced = trace(model)
    for name in model.graph.names:
        with torch.no_grad(), traced.trace(PIXELS):
            traced.get(name).output = traced.get(name).output * 1.5
            logits = traced.output.save()
        assert torch.equal(logits, model.run(PIXELS, edits=edits.scale(name, 1.5)).logits), name


def check_skip_puts_a_value_in_the_place_of_a_site():
    model = vit()
    source = model.run(OTHER, capture="blocks.1.attn.hook_pattern").cache["pattern", 1]
    traced = trace(model)
    with torch.no_grad(), traced.trace(PIXELS[:2]):
        traced.blocks[1].attn.hook_pattern.skip(source)
        logits = traced.output.save()
    expected = model.run(PIXELS[:2], edits=edits.patch("blocks.1.attn.hook_pattern", source)).logits
    assert torch.equal(logits, expected)


def check_attention_stays_fused_where_no_pattern_is_read():
    model, calls, original = vit(), [], plain.scores_of
    traced = trace(model)

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    plain.scores_of = counted
    try:
        with torch.no_grad(), traced.trace(PIXELS):
            z = traced.blocks[0].attn.hook_z.output.save()
            logits = traced.output.save()
        assert not calls and torch.equal(logits, model(PIXELS)) and z.shape == (3, 10, 4, 4)
        with torch.no_grad(), traced.trace(PIXELS):
            traced.blocks[0].attn.hook_v.output.save()
            pattern = traced.blocks[1].attn.hook_pattern.output.save()
        assert len(calls) == 1 and pattern.shape == (3, 4, 10, 10)
    finally:
        plain.scores_of = original


def check_invokes_are_rows_of_one_batch():
    model = vit()
    traced = trace(model)
    calls = []
    handle = model.bare.vit.layers[0].mlp.fc1.register_forward_hook(lambda *a: calls.append(1))
    with torch.no_grad(), traced.trace() as tracer:
        with tracer.invoke(PIXELS):
            traced.blocks[0].attn.hook_z.output[:, :, 1] = 0
            one = traced.output.save()
        with tracer.invoke(OTHER):
            pattern = traced.blocks[1].attn.hook_pattern.output.save()
            traced.blocks[1].attn.hook_result.output[:, :, 3] = 0
            other = traced.output.save()
        with tracer.invoke(OTHER[:1]):
            clean = traced.output.save()
    handle.remove()
    assert len(calls) == 1 and pattern.shape == (2, 4, 10, 10)
    rows = [edits.zero("blocks.0.attn.hook_z", heads=[1], rows=[0, 1, 2])]
    rows.append(edits.zero("blocks.1.attn.hook_result", heads=[3], rows=[3, 4]))
    together = model.run(torch.cat([PIXELS, OTHER, OTHER[:1]]), edits=rows, capture="blocks.1.attn.hook_pattern")
    assert torch.equal(torch.cat([one, other, clean]), together.logits)
    assert_close(one, model.run(PIXELS, edits=rows[0]).logits, 1e-6)
    assert_close(clean, model.run(OTHER[:1]).logits, 1e-6)


def check_order_of_invokes_changes_nothing():
    model = vit()
    found = []
    for heads in ((0, 1, 2), (2, 1, 0)):
        traced, rows = trace(model), {}
        with torch.no_grad(), traced.trace() as tracer:
            for head in heads:
                with tracer.invoke(OTHER):
                    traced.blocks[1].attn.hook_z.output[:, :, head] = 0
                    rows[head] = traced.output.save()
        found.append(rows)
    for head in range(3):
        assert_close(found[0][head], found[1][head], 1e-6)
        assert_close(
            found[0][head], model.run(OTHER, edits=edits.zero("blocks.1.attn.hook_z", heads=[head])).logits, 1e-6
        )


def check_gradients_are_autograds():
    model = wrap(rand_vit(), preprocess=tiny_preprocess())
    model.bare.requires_grad_(False)  # also with frozen weights
    pixels, traced = PIXELS.double(), trace(model)
    names = ["blocks.2.attn.hook_result", "blocks.1.attn.hook_pattern", "blocks.1.ln1.hook_scale", "hook_embed"]
    with traced.trace(pixels):
        embed = traced.hook_embed.output
        scale = traced.blocks[1].ln1.hook_scale.output
        pattern = traced.blocks[1].attn.hook_pattern.output
        result = traced.blocks[2].attn.hook_result.output
        loss = traced.output[:, 3].sum()
        with loss.backward():
            g_result = result.grad.save()
            g_pattern = pattern.grad.save()
            g_scale = scale.grad.save()
            g_embed = embed.grad.save()
    run = model.run(pixels, capture=names, grad=True)
    expected = torch.autograd.grad(run.logits[:, 3].sum(), [run.cache[name] for name in names])
    for name, actual, gradient in zip(names, (g_result, g_pattern, g_scale, g_embed), expected, strict=True):
        assert_close(actual, gradient, 1e-12, name)


def check_the_model_is_left_as_found():
    model = vit()
    clean = model(PIXELS).detach()
    with assert_untouched(model):
        traced = trace(model)
        with torch.no_grad(), traced.trace(PIXELS):
            traced.blocks[1].attn.hook_z.output[:] = 0
        try:
            with traced.trace(PIXELS):
                traced.blocks[1].attn.hook_z.output[:, :, 99] = 0
        except IndexError:
            pass
        else:
            raise AssertionError("no error")
        assert ACTIVE.get() is None
        with traced.trace(PIXELS) as tracer:
            traced.blocks[0].attn.hook_z.output.save()
            tracer.stop()
        assert ACTIVE.get() is None
    assert torch.equal(model(PIXELS), clean)
    assert all("nnsight" not in str(type(module)) for module in model.modules())
    assert not any("forward" in vars(module) for module in [*model.modules(), *model.bare.modules()])


def check_edits_around_a_trace_apply_first():
    model = vit()
    traced, edit = trace(model), edits.zero("blocks.0.attn.hook_z", heads=[1])
    with torch.no_grad(), model.edited([edit]), traced.trace(PIXELS):
        z = traced.blocks[0].attn.hook_z.output.save()
        logits = traced.output.save()
    run = model.run(PIXELS, edits=edit, capture="blocks.0.attn.hook_z")
    assert torch.equal(logits, run.logits) and torch.equal(z, run.cache["z", 0])


def check_a_run_inside_a_block_is_its_own():
    model = vit()
    traced, seen = trace(model), []
    with torch.no_grad(), traced.trace(PIXELS):
        traced.blocks[0].attn.hook_z.output[:] = 0
        seen.append(model.run(PIXELS).logits)
        logits = traced.output.save()
    assert torch.equal(seen[0], model.run(PIXELS).logits)
    assert torch.equal(logits, model.run(PIXELS, edits=edits.zero("blocks.0.attn.hook_z")).logits)


def check_cache_records_every_site():
    model = vit()
    traced = trace(model)
    with torch.no_grad(), traced.trace(PIXELS) as tracer:
        cache = tracer.cache()
    run = model.run(PIXELS, capture="*")
    for name in model.graph.names:
        assert torch.equal(cache[f"model.{name}"].output, run.cache[name]), name
    with torch.no_grad(), traced.trace(PIXELS) as tracer:
        few = tracer.cache(modules=[traced.blocks[2].attn.hook_z])
    assert torch.equal(few["model.blocks.2.attn.hook_z"].output, model.run(PIXELS, capture="*hook_z").cache["z", 2])


def check_persistent_edits():
    model = vit()
    traced = trace(model)
    with traced.edit() as (_, changed):
        changed.blocks[1].attn.hook_z.output[:, :, 2] = 0
    with torch.no_grad(), changed.trace(PIXELS):
        logits = changed.output.save()
    with torch.no_grad(), traced.trace(PIXELS):
        clean = traced.output.save()
    assert torch.equal(logits, model.run(PIXELS, edits=edits.zero("blocks.1.attn.hook_z", heads=[2])).logits)
    assert torch.equal(clean, model.run(PIXELS).logits)


def check_restart_at_a_layer():
    model = vit()
    traced = trace(model)
    stream = model.run(PIXELS, capture="blocks.2.hook_resid_pre").cache["resid_pre", 2]
    with torch.no_grad(), traced.trace(stream, start_at_layer=2):
        z = traced.blocks[2].attn.hook_z.output.save()
        logits = traced.output.save()
    assert torch.equal(logits, model(PIXELS)) and torch.equal(z, model.run(PIXELS, capture="*hook_z").cache["z", 2])


def check_image_sets_are_preprocessed():
    model, images = mechvis.load("scenes-vit"), mechvis.data.scenes(n=3, seed=1)
    traced = trace(model)
    with torch.no_grad(), traced.trace(images):
        logits = traced.output.save()
    assert torch.equal(logits, model.run(images).logits)


def check_what_does_not_fit_is_said():
    model = vit()
    traced = trace(model)
    try:
        with traced.trace() as tracer:
            with tracer.invoke(PIXELS):
                traced.output.save()
            with tracer.invoke(PIXELS, start_at_layer=1):
                traced.output.save()
        raise AssertionError("no error")
    except BadData as error:
        assert "rows of one batch" in str(error)
    try:
        with traced.trace(PIXELS[:, :, :8]):
            traced.output.save()
        raise AssertionError("no error")
    except ValueError as error:
        assert "12" in str(error)
    wide = wrap(tiny("clip-text"))
    both = trace(wide)
    try:
        with both.trace() as tracer:
            with tracer.invoke(tiny_input("clip-text")):
                both.output.save()
            with tracer.invoke(tiny_input("clip-text")[:, :9]):
                both.output.save()
        raise AssertionError("no error")
    except ShapeMismatch as error:
        assert "do not fit" in str(error)
    try:
        with traced.trace(PIXELS):
            late = traced.blocks[1].attn.hook_z.output.save()
            early = traced.blocks[0].attn.hook_z.output.save()  # noqa: F841
        raise AssertionError(f"no error, {late}")
    except Exception as error:
        assert type(error).__name__ == "OutOfOrderError", error
    try:
        trace(wrap(tiny("clip"), preprocess=tiny_preprocess()))
        raise AssertionError("no error")
    except BadData as error:
        assert "clip.vision" in str(error)
    with torch.no_grad(), traced.trace(PIXELS):  # and after all that it works
        logits = traced.output.save()
    assert torch.equal(logits, model(PIXELS))


def check_what_a_trace_made_dies_with_it():
    model = vit()

    def made():  # nnsight looks at the frame's variables, which keeps them until the frame ends
        traced = trace(model)
        for _ in range(3):
            with torch.no_grad(), traced.trace(PIXELS):
                z = traced.blocks[1].attn.hook_z.output.save()
        return [weakref.ref(thing) for thing in (z, traced, traced._module)]

    alive = made()
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]


def check_threads_with_a_trace_each():
    model = vit()
    sites = [("blocks.1.attn.hook_z", head) for head in range(4)]
    expected = [model.run(PIXELS, edits=edits.zero(site, heads=[head])).logits for site, head in sites]
    wrong, start = [], threading.Barrier(5)

    def work(head):
        traced = trace(model)
        start.wait()
        for _ in range(25):
            with torch.no_grad(), traced.trace(PIXELS):
                traced.blocks[1].attn.hook_z.output[:, :, head] = 0
                logits = traced.output.save()
            if not torch.equal(logits, expected[head]):
                wrong.append(head)

    def bystander():
        clean = model.run(PIXELS).logits
        start.wait()
        for _ in range(100):
            if not torch.equal(model.run(PIXELS).logits, clean):
                wrong.append("bystander")

    threads = [threading.Thread(target=work, args=(head,)) for head in range(4)]
    threads.append(threading.Thread(target=bystander))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def main():
    torch.set_num_threads(1)
    trace(vit())  # imports nnsight, whose own import may warn
    warnings.simplefilter("error")
    outcome = {}
    for name, check in [(n, f) for n, f in globals().items() if n.startswith("check_")]:
        try:
            check()
            outcome[name] = "passed"
        except Exception:
            outcome[name] = traceback.format_exc()
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main()
