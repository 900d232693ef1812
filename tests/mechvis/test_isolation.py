"""Runs cannot see each other, and leave nothing behind: threads, exceptions, Ctrl-C, nesting, memory."""

import contextlib
import gc
import threading
import weakref

import pytest
import torch

from mechvis import edits
from mechvis.errors import MechvisError
from mechvis.models.load import wrap
from mechvis.run import ACTIVE
from mechvis.testing import assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess

SITE = "blocks.0.attn.hook_z"
THREADS = 8


def micro():
    """A model small enough for thousands of runs."""
    return wrap(
        tiny("vit", num_hidden_layers=1, hidden_size=8, intermediate_size=8, image_size=8, num_labels=2),
        preprocess=tiny_preprocess(8),
    )


def hammer(model, pixels, runs):
    """Eight threads with different edits on one model; the wrong results they saw."""
    expected = [
        model.run(pixels, edits=[edits.add(SITE, torch.full((2,), float(i)), heads=[i % 4])], capture=[SITE])
        for i in range(1, THREADS + 1)
    ]
    expected.append(model.run(pixels, capture=[SITE]))
    wrong, start = [], threading.Barrier(THREADS + 1)

    def work(index):
        edit = [edits.add(SITE, torch.full((2,), float(index + 1)), heads=[(index + 1) % 4])] if index < THREADS else []
        start.wait()
        for _ in range(runs):
            run = model.run(pixels, edits=edit, capture=[SITE])
            if not (
                torch.equal(run.cache[SITE], expected[index].cache[SITE])
                and torch.equal(run.logits, expected[index].logits)
            ):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_threads_do_not_see_each_other_in_500_runs_each():
    model, pixels = micro(), torch.randn(2, 3, 8, 8)
    with assert_untouched(model):
        assert hammer(model, pixels, 500) == []


def test_a_thread_started_inside_edited_does_not_inherit_the_edits():
    model, pixels = micro(), torch.randn(2, 3, 8, 8)
    seen = []
    with model.edited([edits.zero(SITE)]):
        inside = model(pixels).detach()
        thread = threading.Thread(target=lambda: seen.append(model(pixels).detach()))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], model.run(pixels).logits) and not torch.equal(inside, seen[0])


# clean exits


@pytest.fixture(scope="module")
def model():
    return wrap(rand_vit(), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", dtype=torch.float64)


def fail_with(error):
    def fail(x):
        raise error

    return edits.call("blocks.1.attn.hook_z", fail)


@pytest.mark.parametrize("grad", [False, True])
def test_clean_exit_after_return(model, pixels, grad):
    with assert_untouched(model):
        run = model.run(pixels, edits=[edits.zero("blocks.1.attn.hook_z", heads=[0])], capture="*", grad=grad)
        if grad:
            torch.autograd.grad(run.logits.sum(), run.cache["hook_embed"])
        del run
    assert ACTIVE.get() is None


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), MemoryError()], ids=repr)
def test_clean_exit_after_an_exception_in_an_edit(model, pixels, error):
    clean = model.run(pixels).logits
    with assert_untouched(model), pytest.raises(type(error)):
        model.run(pixels, edits=[fail_with(error)], capture="*", grad=True)
    assert ACTIVE.get() is None
    assert torch.equal(model.run(pixels).logits, clean)


@pytest.mark.parametrize("error", [RuntimeError("out of order"), KeyboardInterrupt()], ids=repr)
def test_clean_exit_after_an_exception_in_the_model(pixels, error):
    bare = rand_vit()
    model = wrap(bare, preprocess=tiny_preprocess())

    def fail(module, args):
        raise error

    handle = bare.vit.layers[1].mlp.fc2.register_forward_pre_hook(fail)
    with assert_untouched(model), pytest.raises(type(error)):
        model.run(pixels, edits=[edits.zero("blocks.0.attn.hook_z")], capture="*")
    handle.remove()
    assert ACTIVE.get() is None
    with torch.no_grad():
        assert torch.equal(model(pixels), bare(pixels).logits)


def test_clean_exit_of_edited(model, pixels):
    edit = edits.zero("blocks.1.attn.hook_z")
    for error in (None, ValueError, KeyboardInterrupt):
        with assert_untouched(model), contextlib.suppress(ValueError, KeyboardInterrupt), model.edited([edit]):
            model(pixels)
            if error:
                raise error
        assert ACTIVE.get() is None


def test_clean_exit_after_our_own_errors(model, pixels):
    for bad in (
        {"edits": [edits.zero("nope")]},
        {"capture": ["nope"]},
        {"start_at_layer": 9},
        {"edits": [edits.zero("blocks.1.attn.hook_z", rows=[99])]},
    ):
        with assert_untouched(model), pytest.raises(MechvisError):
            model.run(pixels, **bad)
        assert ACTIVE.get() is None


def test_transformer_lens_surface_cleans_up(model, pixels):
    def fail(x, hook):
        raise ValueError("mine")

    with assert_untouched(model):
        model.run_with_cache(pixels)
        model.run_with_hooks(pixels, fwd_hooks=[("blocks.0.attn.hook_z", lambda x, hook: x * 0)])
        with pytest.raises(ValueError, match="mine"):
            model.run_with_hooks(pixels, fwd_hooks=[("blocks.0.attn.hook_z", fail)])
        with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: x)]):
            model(pixels)


def test_foreign_hooks_stay_and_still_fire(pixels):
    bare = rand_vit()
    calls = []
    handle = bare.vit.layers[1].mlp.fc1.register_forward_hook(lambda *a: calls.append(1))
    model = wrap(bare, preprocess=tiny_preprocess())
    calls.clear()
    model.run(pixels, edits=[edits.zero("blocks.0.attn.hook_z")], capture="*")
    assert calls == [1] and len(bare.vit.layers[1].mlp.fc1._forward_hooks) == 1
    handle.remove()


# nesting


def test_a_run_inside_an_edit_of_another_run(model, pixels):
    seen = {}

    def look(x):
        seen["inner"] = model.run(pixels, capture=["blocks.0.attn.hook_z"])
        return x

    clean = model.run(pixels, capture=["blocks.0.attn.hook_z"])
    outer = model.run(
        pixels,
        edits=[edits.zero("blocks.0.attn.hook_z"), edits.call("blocks.1.attn.hook_z", lambda x: look(x) * 2)],
        capture=["blocks.0.attn.hook_z"],
    )
    assert torch.equal(seen["inner"].logits, clean.logits)
    assert torch.equal(seen["inner"].cache["z", 0], clean.cache["z", 0])
    assert (outer.cache["z", 0] == 0).all()


def test_a_run_inside_edited_is_its_own(model, pixels):
    with model.edited([edits.zero("blocks.1.attn.hook_z")]):
        plain = model.run(pixels).logits
        edited = model(pixels).detach()
    assert torch.equal(plain, model.run(pixels).logits) and not torch.equal(plain, edited)


def test_edits_of_one_model_do_not_reach_another(pixels):
    one, other = (wrap(rand_vit(seed), preprocess=tiny_preprocess()) for seed in (0, 1))
    expected = other.run(pixels).logits
    with one.edited([edits.zero("blocks.1.attn.hook_z")]):
        one(pixels)
        assert torch.equal(other(pixels).detach(), expected)
    twin = wrap(one.bare, preprocess=tiny_preprocess())
    with one.edited([edits.zero("blocks.1.attn.hook_z")]):
        one(pixels)
        assert torch.equal(twin(pixels).detach(), one.run(pixels).logits)


def test_an_unrelated_model_and_torch_itself_are_untouched(model, pixels):
    unrelated, x = rand_vit(3), tiny_input("vit", dtype=torch.float64)

    def gradients():
        unrelated.zero_grad()
        unrelated(x).logits.square().sum().backward()
        return [p.grad.clone() for p in unrelated.parameters()]

    before, functions = (
        gradients(),
        (torch.softmax, torch.nn.functional.scaled_dot_product_attention, torch.Tensor.backward),
    )
    with model.edited([edits.zero("blocks.1.attn.hook_z")]):
        model(pixels)
        assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    assert functions == (torch.softmax, torch.nn.functional.scaled_dot_product_attention, torch.Tensor.backward)


# order and memory


def test_results_do_not_depend_on_the_order_of_reading_or_asking(model, pixels):
    names = ["hook_logits", "blocks.2.attn.hook_z", "hook_embed", "blocks.0.hook_resid_mid"]
    one, other = model.run(pixels, capture=names), model.run(pixels, capture=names[::-1])
    assert list(one.cache) == list(other.cache)
    assert all(torch.equal(one.cache[name], other.cache[name]) for name in names)
    assert torch.equal(model.run(pixels).logits, one.logits)


def test_captured_tensors_die_with_their_run(model, pixels):
    run = model.run(pixels, capture="*", grad=True)
    references = [weakref.ref(tensor) for tensor in run.cache.values()]
    assert len(references) == len(model.graph)
    del run
    gc.collect()
    assert not any(reference() is not None for reference in references)


def test_an_edits_source_dies_with_it(model, pixels):
    source = torch.randn(3, 10, 4, 4, dtype=torch.float64)
    reference = weakref.ref(source)
    run = model.run(pixels, edits=[edits.patch("blocks.1.attn.hook_z", source)])
    del source, run
    gc.collect()
    assert reference() is None


def test_many_runs_do_not_grow():
    import resource

    model, pixels = micro(), torch.randn(2, 3, 8, 8)
    edit = [edits.zero(SITE, heads=[1])]
    for _ in range(50):
        model.run(pixels, edits=edit, capture="*")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        model.run(pixels, edits=edit, capture="*")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 5, f"{grown:.1f} MiB after 300 runs"
