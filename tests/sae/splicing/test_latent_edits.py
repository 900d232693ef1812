"""Edits of latents on a plain model: the same as at the sites of a spliced one, exact no-ops, saved and loaded."""

import json

import pytest
import torch

from mechvis import edits
from mechvis.errors import (
    BadData,
    EffectlessEdit,
    OutOfRange,
    RefusedMethod,
    ResultMismatch,
    ShapeMismatch,
    StoreCorrupt,
    UnknownName,
)
from mechvis.testing import assert_close
from sae.splicing import (
    LatentChange,
    ablate,
    ablate_to_mean,
    clamp,
    latent_means,
    load_edits,
    replace,
    scale,
    splice,
    steer,
)

RESID, Z = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def vit(tiny_model):
    return tiny_model("vit")


@pytest.mark.parametrize("site", [RESID, Z])
@pytest.mark.parametrize("error", [True, False])
def test_the_same_as_on_the_spliced_model(vit, a_dictionary, site, error):
    model, pixels = vit
    d = a_dictionary(model, pixels, site)
    spliced, at = splice(model, d, error=error), f"{site}.hook_latents"
    reference = model.run(pixels, capture=[site]).cache
    flat = reference[site].flatten(2) if site == Z else reference[site]
    means = latent_means(d, flat)
    mean_of = {at: means.expand(10, -1)}
    more = {"tokens": "patches", "rows": [0, 2, 3]}
    if not error:
        more = {}  # elsewhere the edit leaves the activation, and the spliced model its reconstruction
    pairs = [
        (ablate(d, [3, 5], error=error, **more), edits.zero(at, units=[3, 5], **more)),
        (scale(d, [3, 5], 2.5, error=error, **more), edits.scale(at, 2.5, units=[3, 5], **more)),
        (steer(d, 7, 1.5, error=error, **more), edits.add(at, torch.tensor([1.5]).double(), units=[7], **more)),
        (
            ablate_to_mean(d, [3, 9], means, error=error, **more),
            edits.mean_positional(at, mean_of, units=[3, 9], **more),
        ),
    ]
    for plain, latent in pairs:
        own, theirs = model.run(pixels, edits=[plain]).output, spliced.run(pixels, edits=[latent]).output
        assert_close(own, theirs, 1e-11)
        assert not torch.equal(own, model.run(pixels).output)
    twice = ablate_to_mean(d, [3, 9], reference if site == RESID else flat, site=site, error=error, **more)
    assert_close(model.run(pixels, edits=[twice]).output, model.run(pixels, edits=[pairs[3][0]]).output, 1e-12)


def test_nothing_changed_is_no_change_by_one_bit(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID, n=300)
    codes = d.encode(model.run(pixels, capture=[RESID]).cache[RESID])
    silent = int((codes > 0).sum((0, 1)).argmin())
    assert not codes[..., silent].any()
    for edit in (scale(d, [3, 4], 1.0), steer(d, 4, 0.0), ablate(d, silent)):
        with pytest.warns(EffectlessEdit):
            assert torch.equal(model.run(pixels, edits=[edit]).output, model.run(pixels).output)


def test_a_region_of_its_own_in_every_row(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    mask = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = torch.cat([torch.zeros(5, 1, dtype=torch.bool), mask], 1)
    by_edit = model.run(pixels, edits=[steer(d, 7, 2.0, tokens=mask)], capture=[RESID])
    x = model.run(pixels, capture=[RESID]).cache[RESID]
    expected = x + 2.0 * whole[..., None] * d.directions[7].detach()
    assert_close(by_edit.cache[RESID], expected, 1e-12)
    assert torch.equal(by_edit.cache[RESID][~whole], x[~whole])
    spliced = splice(model, d)
    as_site = edits.add(f"{RESID}.hook_latents", torch.tensor([2.0]).double(), units=[7], tokens=mask)
    assert_close(spliced.run(pixels, edits=[as_site]).output, by_edit.output, 1e-11)
    heads = a_dictionary(model, pixels, Z)
    by_edit = model.run(pixels, edits=[ablate(heads, range(24), tokens=mask)], capture=[Z]).cache[Z]
    x = model.run(pixels, capture=[Z]).cache[Z]
    change = -(heads.encode(x.flatten(2)) @ heads.directions).detach().reshape(x.shape)
    assert_close(by_edit, x + torch.where(whole[..., None, None], change, 0.0), 1e-12)


def test_gradients_flow_through_an_edit(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    run = model.run(pixels, edits=[scale(d, list(range(24)), 0.5)], capture=["blocks.0.hook_resid_pre"], grad=True)
    (found,) = torch.autograd.grad(run.output[:, 0].sum(), [run.cache["blocks.0.hook_resid_pre"]])
    plain = model.run(pixels, capture=["blocks.0.hook_resid_pre"], grad=True)
    (without,) = torch.autograd.grad(plain.output[:, 0].sum(), [plain.cache["blocks.0.hook_resid_pre"]])
    assert torch.isfinite(found).all() and not torch.allclose(found, without)


def test_they_print_compare_and_hash_by_content(vit, a_dictionary):
    model, pixels = vit
    d, other = a_dictionary(model, pixels, RESID), a_dictionary(model, pixels, RESID, seed=1)
    edit = clamp(d, [3, 7], [0.5, 2.0], tokens=[1])
    assert repr(edit) == (
        "edits.call('blocks.1.hook_resid_post', tokens=[1], set latents 3, 7 by 0.5, 2 of Dictionary(topk autoencoder "
        "of blocks.1.hook_resid_post: 24 latents of 16))"
    )
    assert (
        edit == clamp(d, [3, 7], [0.5, 2.0], tokens=[1]) and len({edit, clamp(d, [3, 7], [0.5, 2.0], tokens=[1])}) == 1
    )
    different = [clamp(d, [3, 7], [0.5, 2.5], tokens=[1]), clamp(d, [3, 8], [0.5, 2.0], tokens=[1]),
                 clamp(other, [3, 7], [0.5, 2.0], tokens=[1]), steer(d, [3, 7], [0.5, 2.0], tokens=[1]),
                 clamp(d, [3, 7], [0.5, 2.0], tokens=[1], error=False)]  # fmt: skip
    assert len({edit, *different}) == 6
    assert "error=False" in repr(different[-1])


def test_saved_with_the_dictionary_in_its_folder(vit, a_dictionary, tmp_path):
    model, pixels = vit
    a_dictionary(model, pixels, RESID).save(tmp_path / "my-sae")
    made = [
        ablate(tmp_path / "my-sae", [3, 5], tokens="patches"),
        clamp(str(tmp_path / "my-sae"), 7, 2.0, tokens=torch.ones(5, 9).bool()),
        replace(tmp_path / "my-sae", rows=[1]),
        edits.zero("blocks.2.attn.hook_z", heads=[1]),
    ]
    path = edits.save(made, tmp_path / "edits")
    again = load_edits(path)
    assert again == made and [repr(edit) for edit in again] == [repr(edit) for edit in made]
    assert torch.equal(model.run(pixels, edits=again).output, model.run(pixels, edits=made).output)
    assert json.loads(path.read_text())["version"] == 2
    assert json.loads(edits.save(made[3:], tmp_path / "plain").read_text())["version"] == 1
    # The folder moved together with the edits.
    (tmp_path / "there").mkdir()
    for name in ("my-sae", "edits.json", "edits.safetensors"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    assert load_edits(tmp_path / "there" / "edits.json") == made
    a_dictionary(model, pixels, RESID, seed=5).save(tmp_path / "there" / "my-sae")
    with pytest.raises(ResultMismatch, match="holds another dictionary than the edit was saved with"):
        load_edits(tmp_path / "there" / "edits.json")
    (tmp_path / "there" / "my-sae").rename(tmp_path / "there" / "gone")
    with pytest.raises(StoreCorrupt, match=r"is not in .*my-sae, nor beside the file"):
        load_edits(tmp_path / "there" / "edits.json")


def test_what_cannot_be_saved_or_loaded(vit, a_dictionary, tmp_path):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    with pytest.raises(BadData, match=r"the folder is not known\. Save the dictionary"):
        edits.save([ablate(d, 3)], tmp_path / "edits")
    a_dictionary(model, pixels, RESID, seed=1).save(tmp_path / "other")
    wrong = LatentChange(dictionary=d, change="zero", latents=(3,), folder=tmp_path / "other")
    with pytest.raises(BadData, match="holds another dictionary than this edit uses"):
        edits.save([edits.call(RESID, wrong)], tmp_path / "edits")
    path = edits.save([ablate(tmp_path / "other", 3)], tmp_path / "edits")
    known = json.loads(path.read_text())

    def spoiled(**changes):
        document = json.loads(json.dumps(known))
        for key, value in changes.items():
            document["edits"][0][key] = value
        path.write_text(json.dumps(document))

    spoiled(fn={"name": "os.system", "command": "true"})
    with pytest.raises(UnknownName, match=r"function of an edit 'os\.system'"):
        load_edits(path)
    spoiled(fn=None)
    with pytest.raises(StoreCorrupt, match="holds an edit 'call' without a function"):
        load_edits(path)
    spoiled(fn={**known["edits"][0]["fn"], "latents": [99]})
    with pytest.raises(StoreCorrupt, match="a saved change of latents cannot be"):
        load_edits(path)
    spoiled(fn={"name": "sae.latents"})
    with pytest.raises(StoreCorrupt, match="a saved change of latents lacks 'folder'"):
        load_edits(path)


def test_refusals(vit, a_dictionary):
    model, pixels = vit
    d = a_dictionary(model, pixels, RESID)
    for call, error, text in [
        (lambda: ablate(d, 24), OutOfRange, "latent 24 does not exist: this dictionary has 24"),
        (lambda: ablate_to_mean(d, 24, torch.zeros(24)), OutOfRange, "latent 24 does not exist"),
        (lambda: ablate(d, []), BadData, "selects no latent"),
        (lambda: ablate(d, [1, 1]), BadData, "repeats a latent"),
        (lambda: clamp(d, [1, 2], [1.0, 2.0, 3.0]), BadData, "3 values for 2 latents"),
        (lambda: clamp(d, 1, float("nan")), BadData, "NaN or Inf"),
        (lambda: ablate_to_mean(d, 1, torch.zeros(5)), ShapeMismatch, r"means of latents are \[24\]"),
        (lambda: ablate_to_mean(d, 1, {"x": torch.zeros(5, 16)}), BadData, "the reference has no activations of"),
        (lambda: ablate(torch.nn.Linear(2, 2), 1), BadData, "not to a Linear"),
        (lambda: latent_means(d, torch.zeros(0, 16)), BadData, "at least one row"),
    ]:
        with pytest.raises(error, match=text):
            call()
    transcoder = a_dictionary(model, pixels, "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    with pytest.raises(RefusedMethod, match=r"an edit sees one activation.*Splice it in"):
        ablate(transcoder, 1)
