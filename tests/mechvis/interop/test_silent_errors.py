"""Reports of silently wrong results in other tools, each as a test here.

The numbers are those of issues: TransformerLens (TL), nnsight, transformers, pytorch, captum.
"""

import gc
import inspect
import threading
import weakref

import pytest
import torch

import mechvis
from mechvis import edits
from mechvis.errors import BadData, UnknownName, UnknownSite
from mechvis.interop import captum as captum_bridge
from mechvis.interop import nnsight as nnsight_bridge
from mechvis.models.load import wrap
from mechvis.testing import assert_close, assert_untouched, rand_vit, tiny, tiny_input, tiny_preprocess

Z = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def model():
    return wrap(rand_vit(), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", dtype=torch.float64)


@pytest.mark.parametrize("name", ["vit.layers.1.attention.dropout", "vit.dropout", "vit.embeddings.patch_embeddings"])
def test_a_module_without_a_site_is_an_error_with_the_nearest_names(model, pixels, name):
    """A hook on a module that is never called (out_proj of torch's attention, timm's attn_drop) never fires."""
    with pytest.raises(UnknownSite, match="Nearest"):
        model.run(pixels, capture=[name])
    with pytest.raises(UnknownSite, match="Nearest"):
        model.run_with_hooks(pixels, fwd_hooks=[(name, lambda x, hook: x)])


def test_a_second_model_from_the_same_config_changes_the_attention_of_the_first():
    """transformers: models share a config object, and with it the attention implementation. The wrapper follows the
    model, whichever way that computes at the moment."""
    bare, pixels = tiny("vit"), tiny_input("vit")
    model = wrap(bare, preprocess=tiny_preprocess())
    sibling = type(bare)(bare.config).eval()
    for attention in ("eager", "sdpa"):
        sibling.set_attn_implementation(attention)
        with torch.no_grad():
            assert torch.equal(model(pixels), bare(pixels).logits)
            assert torch.equal(model.run(pixels, capture="*hook_z").logits, bare(pixels).logits)


def _takes_anything(function):
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def test_no_keyword_vanishes(model, pixels):
    """TL #1680, MambaLens #4: a keyword that is accepted and never applied."""
    allowed = {"HookedViT.run_with_cache", "HookedViT.add_hook", "attribute"}
    # torch's own, which are handed on
    allowed |= {f"HookedViT.{name}" for name in ("named_parameters", "state_dict", "load_state_dict")}
    allowed |= {"Face.named_parameters", "HookedCLIP.to"}
    allowed |= {"Record.pick"}  # its keywords are columns, and a column that is none is an error
    found = set()
    for name in mechvis.__all__:
        thing = getattr(mechvis, name)
        if inspect.isclass(thing):
            methods = inspect.getmembers(thing, inspect.isfunction)
            ours = [(f"{name}.{key}", m) for key, m in methods if key[0] != "_" and m.__module__.startswith("mechvis")]
            found |= {key for key, method in ours if _takes_anything(method)}
        elif inspect.isfunction(thing) and _takes_anything(thing):
            found.add(name)
    for function in (captum_bridge.attribute, nnsight_bridge.trace):
        found |= {function.__name__} if _takes_anything(function) else set()
    assert found <= allowed, found - allowed
    with pytest.raises(TypeError, match="name_filter"):
        model.run_with_cache(pixels, name_filter="*hook_z")
    with pytest.raises(TypeError, match="fwd_hook"):
        model.run_with_hooks(pixels, fwd_hook=[])
    with pytest.raises(TypeError, match="directon"):
        model.add_hook(Z, lambda x, hook: x, directon="fwd")
    for method in ("saliency", "noise_tunnel"):  # captum's NoiseTunnel has keyword arguments of any name
        with pytest.raises(UnknownName, match=r"unknown option of .* 'n_step'\. Nearest: .*"):
            captum_bridge.attribute(model.face(3), pixels, method, n_step=3)


def test_hooks_are_gone_after_every_exit_of_a_backward_pass(model, pixels):
    """TL #156, #1323, #1324: hooks that stay after an exception, backward hooks that stay after the end."""

    def fail(*args, **kwargs):
        raise ValueError("mine")

    with assert_untouched(model):
        model.run_with_cache(pixels, incl_bwd=True, loss=lambda logits: logits.sum())
        with pytest.raises(ValueError, match="mine"):
            model.run_with_cache(pixels, incl_bwd=True, loss=fail)
        with pytest.raises(BadData):
            model.run_with_cache(pixels, incl_bwd=True)
        with pytest.raises(ValueError, match="mine"), model.hooks(bwd_hooks=[(Z, fail)]):
            model(pixels).sum().backward()
        model.zero_grad()


def test_the_order_of_registration_changes_nothing(model, pixels):
    """nnsight #398: the order in which values are asked for changed predictions."""
    hooks = [
        (f"blocks.{layer}.{site}", lambda x, hook: x * 0.5)
        for layer in range(3)
        for site in ("hook_mlp_out", "attn.hook_z")
    ]
    one, other = (model.run_with_hooks(pixels, fwd_hooks=order) for order in (hooks, hooks[::-1]))
    assert torch.equal(one, other)
    ours = [edits.scale(name, 0.5) for name, _ in hooks]
    assert torch.equal(model.run(pixels, edits=ours).logits, model.run(pixels, edits=ours[::-1]).logits)
    assert_close(one.detach(), model.run(pixels, edits=ours).logits, 1e-13)


def test_a_hook_that_writes_in_place_leaves_the_given_stream(model, pixels):
    def clear(x, hook):
        x[:] = 0

    cache = model.run(pixels, capture="blocks.1.hook_resid_pre").cache
    stream = cache["resid_pre", 1]
    kept = stream.clone()
    hooked = model.run_with_hooks(stream, fwd_hooks=[("blocks.1.hook_resid_pre", clear)], start_at_layer=1)
    assert torch.equal(stream, kept) and torch.equal(cache["resid_pre", 1], kept)
    edited = model.run(pixels, edits=edits.zero("blocks.1.hook_resid_pre")).logits
    assert torch.equal(hooked.detach(), edited)


def test_caches_and_faces_die(pixels):
    """nnsight #102, #389, #396: memory that grows with every run."""
    model = wrap(rand_vit(), preprocess=tiny_preprocess())
    source = model.run(pixels, capture=[Z]).cache[Z].clone()
    face = model.face(3, edits=edits.patch(Z, source))
    face(pixels, torch.arange(3)).sum().backward()
    _, cache = model.run_with_cache(pixels, incl_bwd=True, loss=torch.sum)
    alive = [weakref.ref(thing) for thing in (source, face, *cache.values())]
    del source, face, cache
    gc.collect()
    assert not [reference() for reference in alive if reference() is not None]
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_threads_with_a_face_each(model, pixels):
    """pytorch #128272 and our own measurement: with hooks on modules 7 to 8 % of concurrent captures were another's."""
    faces = [model.face(3, edits=edits.zero(Z, heads=[head])) for head in range(4)]
    faces += [model.face("logit_diff", target=[1, 2, 3], contrast=0), model.face(5)]
    ids = torch.arange(3)

    def gradient(face):
        given = pixels.clone().requires_grad_()
        return torch.autograd.grad(face(given, ids).sum(), given)[0]

    expected, wrong, start = [gradient(face) for face in faces], [], threading.Barrier(len(faces))

    def work(index):
        start.wait()
        for _ in range(30):
            if not torch.equal(gradient(faces[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(faces))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
