"""A dictionary in a run: neutral with its error term, a replacement without; sites, gradients, refusals."""

import threading

import pytest
import torch

import mechvis
import sae
from mechvis import edits, testing
from mechvis.errors import (
    BadData,
    OutOfRange,
    RefusedMethod,
    ShapeMismatch,
    UnknownName,
    UnknownSite,
)
from mechvis.models.load import wrap
from mechvis.testing import assert_close
from sae.splicing import clamp, clamp_latents, replace, scale, splice, splice_parts

RESID, MLP, ATTN, Z = (
    "blocks.1.hook_resid_post",
    "blocks.1.hook_mlp_out",
    "blocks.1.hook_attn_out",
    "blocks.1.attn.hook_z",
)
SITES = [RESID, MLP, ATTN, Z, "blocks.0.hook_resid_pre", "blocks.2.hook_resid_mid", "hook_embed", "hook_pooled"]
"""Sites at which dictionaries are tried."""


@pytest.fixture(scope="module")
def vit(tiny_model):
    return tiny_model("vit")


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["vit", "dinov2", "siglip-vision"])
def test_with_the_error_term_nothing_changes_by_one_bit(tiny_model, a_dictionary, family, site):
    model, pixels = tiny_model(family)
    clean = model.run(pixels).output
    d = a_dictionary(model, pixels, site)
    spliced = splice(model, d)
    assert torch.equal(spliced.run(pixels).output, clean)
    seen = spliced.run(pixels, capture=["*hook_latents", "*hook_error", site])
    assert torch.equal(seen.output, clean), "nor when somebody looks"
    with_gradient = spliced.run(pixels, capture=["*hook_latents", "*hook_error"], grad=True)
    assert torch.equal(with_gradient.output.detach(), clean)
    codes, missed, x = (seen.cache[name] for name in (f"{site}.hook_latents", f"{site}.hook_error", site))
    flat = x.flatten(-2) if site == Z else x
    assert torch.equal(codes, d.encode(flat)) and codes.shape[-1] == 24
    assert int((codes > 0).sum(-1).max()) <= 4 and (codes > 0).any()
    assert_close((missed + d.decode(codes, like=flat).reshape(x.shape)), x, 1e-12)


@pytest.mark.parametrize("site", SITES)
def test_without_the_error_term_the_activation_is_what_the_dictionary_makes_of_it(vit, a_dictionary, site):
    model, pixels = vit
    d = a_dictionary(model, pixels, site)
    spliced = splice(model, d, error=False)
    x = model.run(pixels, capture=[site]).cache[site]
    with torch.no_grad():
        made = d(x.flatten(-2) if site == Z else x).reshape(x.shape)
    expected = model.run(pixels, edits=[edits.patch(site, made)]).output
    assert_close(spliced.run(pixels).output, expected, 1e-12)
    assert not torch.allclose(expected, model.run(pixels).output)
    assert torch.equal(spliced.run(pixels).output, model.run(pixels, edits=[replace(d)]).output)
    assert f"{site}.hook_error" not in spliced.graph


@pytest.mark.parametrize("error", [True, False])
def test_a_latent_edit_writes_what_the_decoder_says(vit, a_dictionary, error):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    spliced, latents = splice(model, d, error=error), f"{RESID}.hook_latents"
    x = model.run(pixels, capture=[RESID]).cache[RESID]
    codes = d.encode(x).detach()
    latent = int(codes.mean((0, 1)).argmax())
    changed = codes.clone()
    changed[:, 1:, latent] = 0
    with torch.no_grad():
        new = d.decode(changed) if not error else x + d.decode(changed) - d.decode(codes)
    expected = model.run(pixels, edits=[edits.patch(RESID, new)]).output
    edit = edits.zero(latents, units=[latent], tokens="patches")
    assert_close(spliced.run(pixels, edits=[edit]).output, expected, 1e-11)
    assert edit.__repr__().startswith("edits.zero('blocks.1.hook_resid_post.hook_latents', tokens='patches', units=[")


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_stands_in_the_place_of_the_mlp(vit, a_dictionary, skip):
    model, pixels = vit
    reads = "blocks.1.ln2.hook_normalized"
    d = a_dictionary(model, pixels, reads, MLP, skip=skip)
    with torch.no_grad():
        d.W_skip.normal_(generator=torch.Generator().manual_seed(0)) if skip else None
    clean = model.run(pixels, capture=[reads, MLP])
    kept, replaced = splice(model, d), splice(model, d, error=False)
    assert torch.equal(kept.run(pixels).output, clean.output)
    with torch.no_grad():
        made = d(clean.cache[reads])
    expected = model.run(pixels, edits=[edits.patch(MLP, made)]).output
    assert_close(replaced.run(pixels).output, expected, 1e-12)
    assert kept.graph[f"{MLP}.hook_latents"].reads == (reads,)
    codes = d.encode(clean.cache[reads]).detach()
    latent = int(codes.mean((0, 1)).argmax())
    less = codes.clone()
    less[..., latent] = 0
    with torch.no_grad():
        new = clean.cache[MLP] + (less - codes) @ d.directions
    assert_close(
        kept.run(pixels, edits=[edits.zero(f"{MLP}.hook_latents", units=[latent])]).output,
        model.run(pixels, edits=[edits.patch(MLP, new)]).output,
        1e-11,
    )


@pytest.mark.parametrize("kind", ["none", "mean_norm", "token_norm", "layer_norm"])
def test_every_normaliser(vit, a_dictionary, kind):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID, normalise=kind)
    x = model.run(pixels, capture=[RESID]).cache[RESID]
    with torch.no_grad():
        codes = d.encode(x)
        latent = int(codes.mean((0, 1)).argmax())
        less = codes.clone()
        less[..., latent] *= 0.5
        new = x + d.decode(less, like=x) - d.decode(codes, like=x)
    expected = model.run(pixels, edits=[edits.patch(RESID, new)]).output
    for edited in (
        splice(model, d).run(pixels, edits=[edits.scale(f"{RESID}.hook_latents", 0.5, units=[latent])]),
        model.run(pixels, edits=[scale(d, latent, 0.5)]),
    ):
        assert_close(edited.output, expected, 1e-11)


def test_several_dictionaries_at_once(vit, a_dictionary):
    model, pixels = vit
    first, second = a_dictionary(model, pixels, RESID), a_dictionary(model, pixels, "blocks.2.attn.hook_z", seed=1)
    both = splice(splice(model, first), second)
    assert len(both.splices) == 2 and torch.equal(both.run(pixels).output, model.run(pixels).output)
    two = [f"{RESID}.hook_latents", "blocks.2.attn.hook_z.hook_latents"]
    early = edits.scale(two[0], 3.0)
    alone, together = splice(model, first).run(pixels, edits=[early]), both.run(pixels, edits=[early], capture=two)
    assert torch.equal(alone.output, together.output), "the later one with its error term changes nothing"
    assert not torch.equal(together.cache[two[1]], both.run(pixels, capture=two).cache[two[1]]), "but sees the change"
    with pytest.raises(BadData, match=r"there is a dictionary at blocks\.1\.hook_resid_post already"):
        splice(both, first)


def test_gradients_at_latents_and_errors(vit, a_dictionary):
    """dM/df is the decoder's transpose times dM/dx', the error held; what flows on to the input is as without."""
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    names = [f"{RESID}.hook_latents", f"{RESID}.hook_error", "blocks.0.hook_resid_pre"]
    run = splice(model, d).run(pixels, capture=names, grad=True)
    plain = model.run(pixels, capture=[RESID, names[2]], grad=True)
    at = torch.autograd.grad(run.output[:, 0].sum(), [run.cache[name] for name in names])
    by_hand = torch.autograd.grad(plain.output[:, 0].sum(), [plain.cache[RESID], plain.cache[names[2]]])
    assert_close(at[0], by_hand[0] @ d.directions.T, 1e-11)
    assert_close(at[1], by_hand[0], 1e-12)
    assert_close(at[2], by_hand[1], 1e-12)
    # Against a difference quotient: one latent at one token, raised.
    latents = names[0]
    step, spliced = torch.tensor([1e-4]).double(), splice(model, d)
    either = [
        spliced.run(pixels, edits=[edits.add(latents, sign * step, units=[5], tokens=[3])]).output for sign in (1, -1)
    ]
    assert_close(at[0][:, 3, 5], (either[0] - either[1])[:, 0] / (2 * step), 1e-6)


def test_gradient_flows_through_the_encoder_where_the_activation_is_replaced(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    run = splice(model, d, error=False).run(pixels, capture=["blocks.0.hook_resid_pre", "*hook_latents"], grad=True)
    found = torch.autograd.grad(run.output.sum(), list(run.cache.values()))
    assert all(bool(g.abs().sum() > 0) for g in found)


def test_only_some_tokens(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    x = model.run(pixels, capture=[RESID]).cache[RESID]
    patches = splice(model, d, error=False, tokens="patches")
    made = x.clone()
    made[:, 1:] = d(x).detach()[:, 1:]
    expected = model.run(pixels, edits=[edits.patch(RESID, made)]).output
    run = patches.run(pixels, capture=["*hook_latents"])
    assert_close(run.output, expected, 1e-12)
    assert not run.cache[f"{RESID}.hook_latents"][:, 0].any()
    kept = splice(model, d, tokens=[0])
    edited = kept.run(pixels, edits=[edits.add(f"{RESID}.hook_latents", torch.ones(24).double())])
    steered = x.clone()
    steered[:, 0] += d.directions.detach().sum(0)
    assert_close(edited.output, model.run(pixels, edits=[edits.patch(RESID, steered)]).output, 1e-11)


def test_the_error_term_is_a_node_of_its_own(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, Z)
    kept, replaced = splice(model, d), splice(model, d, error=False)
    without = kept.run(pixels, edits=[edits.zero(f"{Z}.hook_error")])
    assert_close(without.output, replaced.run(pixels).output, 1e-12)


def test_clamped_latents(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    spliced = splice(model, d)
    x = model.run(pixels, capture=[RESID]).cache[RESID]
    with torch.no_grad():
        codes = d.encode(x)
        held = codes.clone()
        held[:, 2:4, 3], held[:, 2:4, 7] = 0.5, 2.0
        new = x + d.decode(held) - d.decode(codes)
    expected = model.run(pixels, edits=[edits.patch(RESID, new)]).output
    assert_close(
        spliced.run(pixels, edits=[clamp_latents(spliced, [3, 7], [0.5, 2.0], tokens=[2, 3])]).output, expected, 1e-11
    )
    assert_close(model.run(pixels, edits=[clamp(d, [3, 7], [0.5, 2.0], tokens=[2, 3])]).output, expected, 1e-11)
    with pytest.raises(OutOfRange, match="unit 24 does not exist"):
        spliced.run(pixels, edits=[clamp_latents(spliced, [24], 1.0)])
    with pytest.raises(BadData, match="2 values for 3 latents"):
        clamp_latents(spliced, [1, 2, 3], [1.0, 2.0])
    with pytest.raises(BadData, match=r"say which dictionary's latents: site= one of none"):
        clamp_latents(model, [1], 1.0)


def test_transformer_lens_hooks_reach_latents(vit, a_dictionary):
    model, pixels = vit
    d, name = a_dictionary(model, pixels, RESID), f"{RESID}.hook_latents"
    spliced = splice(model, d)

    def off(x, hook):
        x[..., :] = 0  # in place, as people do it
        return x

    by_hook = spliced.run_with_hooks(pixels, fwd_hooks=[(name, off)])
    assert_close(by_hook, spliced.run(pixels, edits=[edits.zero(name)]).output, 1e-12)
    _, cache = spliced.run_with_cache(pixels, names_filter=[name])
    assert torch.equal(cache[name], spliced.run(pixels, capture=[name]).cache[name])
    assert torch.equal(spliced(pixels), model(pixels)), "no hook is left"


def test_the_given_model_stays_as_it_is(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    with testing.assert_untouched(model):
        spliced = splice(model, d, error=False)
        spliced.run(pixels)
        assert f"{RESID}.hook_latents" not in model.graph and model.fingerprint != spliced.fingerprint
        assert spliced.fingerprint != splice(model, d).fingerprint
    assert not d.W_enc.grad


def test_threads_do_not_see_each_other(vit, a_dictionary):
    model, pixels = vit
    spliced = splice(model, a_dictionary(model, pixels, "blocks.1.ln2.hook_normalized", MLP), error=False)
    expected = [spliced.run(pixels[i : i + 1]).output for i in range(5)]
    found = [None] * 5

    def work(i):
        for _ in range(5):
            found[i] = spliced.run(pixels[i : i + 1]).output

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_restart_after_what_is_read_says_so(vit, a_dictionary):
    model, pixels = vit
    early = a_dictionary(model, pixels, "blocks.0.hook_resid_post", MLP)
    spliced = splice(model, early)
    stream = model.run(pixels, capture=["blocks.1.hook_resid_pre"]).cache["blocks.1.hook_resid_pre"]
    assert torch.equal(spliced.run(stream, start_at_layer=1).output, model.run(stream, start_at_layer=1).output)
    with pytest.raises(BadData, match=r"reads blocks\.0\.hook_resid_post, which this run did not pass"):
        spliced.run(stream, start_at_layer=1, edits=[edits.zero(f"{MLP}.hook_latents")])
    assert spliced.run(pixels, edits=[edits.zero(f"{MLP}.hook_latents")]).output.shape == (
        5,
        model.run(pixels).output.shape[1],
    )


def test_methods_that_run_blocks_themselves_are_refused_without_the_error_term(vit, a_dictionary):
    model, pixels = vit
    replaced = splice(model, a_dictionary(model, pixels, RESID), error=False)
    settings = {"units": "heads", "labels": "predicted", "progress": False}
    with pytest.raises(RefusedMethod, match=r"this method runs the blocks itself.*engine='plain'"):
        mechvis.sweep(replaced, pixels, **settings)
    plain = mechvis.sweep(replaced, pixels, engine="plain", **settings)
    assert len(plain.table) == 12
    by_hand = replaced.run(pixels, edits=[edits.zero("blocks.0.attn.hook_z", heads=[0])]).output
    assert not torch.allclose(by_hand, model.run(pixels, edits=[edits.zero("blocks.0.attn.hook_z", heads=[0])]).output)


def test_other_sweeps_of_a_model_with_its_error_term_are_those_of_the_model(vit, a_dictionary):
    model, pixels = vit
    spliced = splice(model, a_dictionary(model, pixels, RESID))
    settings = {"units": "heads", "labels": "predicted", "progress": False}
    own, theirs = mechvis.sweep(model, pixels, **settings), mechvis.sweep(spliced, pixels, **settings)
    assert (own.values["logit_diff"] == theirs.values["logit_diff"]).all()


def test_zero_shot_heads_and_clip_towers(a_dictionary):
    clip = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    pixels = testing.tiny_input("clip", n=3)
    model = clip.classifier(["a", "b"])
    d = a_dictionary(model, pixels, RESID)
    assert torch.equal(splice(model, d).run(pixels).logits, model.run(pixels).logits)
    assert splice(clip.vision, d).run(pixels).output.shape == clip.vision.run(pixels).output.shape


def test_what_cannot_be_spliced(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    with pytest.raises(UnknownSite, match="no site matches"):
        splice(model, d, site="blocks.1.hook_resid")
    with pytest.raises(ShapeMismatch, match=r"this dictionary reads vectors of width 32, and .*hook_q has"):
        wide = a_dictionary(model, pixels, "blocks.1.mlp.hook_post")
        splice(model, wide, site="blocks.1.attn.hook_q")
    with pytest.raises(BadData, match=r"a dictionary reads vectors; .*hook_pattern is \[row head query key\]"):
        splice(model, d, site="blocks.1.attn.hook_pattern")
    with pytest.raises(OutOfRange, match="which comes after"):
        splice(model, a_dictionary(model, pixels, "blocks.2.hook_resid_pre", MLP))
    with pytest.raises(UnknownName, match="token group"):
        splice_parts(model, d, tokens="patch")
    with pytest.raises(BadData, match="this model has none; its prefix is"):
        splice_parts(model, d, tokens="registers")
    cross = sae.start(sae.TopK(n_latents=8, k=2), {"a": torch.randn(20, 4), "b": torch.randn(20, 4)})
    with pytest.raises(RefusedMethod, match=r"reads 2 sites and writes 2.*written_changes"):
        splice(model, cross)


def test_a_decoder_that_is_not_linear_is_refused(vit, a_dictionary, monkeypatch):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    monkeypatch.setattr(type(d.architecture), "decode", lambda self, d, codes: codes.square() @ d.W_dec)
    with pytest.raises(RefusedMethod, match="is not a sum of its directions"):
        splice(model, d)


def test_the_graph_tells_who_reads_whom(vit, a_dictionary):
    model, pixels = vit
    kept = splice(model, a_dictionary(model, pixels, RESID)).graph
    assert kept.readers(f"{RESID}.hook_latents") == [f"{RESID}.hook_error", "blocks.2.hook_resid_pre"]
    assert kept["blocks.2.hook_resid_pre"].reads == (RESID, f"{RESID}.hook_latents", f"{RESID}.hook_error")
    assert kept[f"{RESID}.hook_latents"].on_demand and kept[f"{RESID}.hook_latents"].sizes == (None, 10, 24)
    replaced = splice(model, a_dictionary(model, pixels, Z), error=False).graph
    assert replaced["blocks.1.attn.hook_result"].reads == (f"{Z}.hook_latents",)
    assert replaced.match("blocks.*.hook_latents") == [f"{Z}.hook_latents"]


def test_a_family_of_ones_own_can_be_spliced(a_dictionary):
    bare = testing.shortcut_vit()
    model = bare if hasattr(bare, "run") else wrap(bare, family=testing.shortcut_parts)
    images = testing.shortcut_images(6, seed=0)
    pixels = images.images.pixels_for(model.preprocess) if hasattr(images, "images") else images.pixels
    d = a_dictionary(model, pixels, "blocks.0.hook_resid_post")
    assert torch.equal(splice(model, d).run(pixels).output, model.run(pixels).output)
