"""Every edit kind against a reference written by hand, selections, files, and the algebra of edits."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechvis
from mechvis import edits
from mechvis.errors import BadData, EffectlessEdit, OutputNotWritable, ShapeMismatch, StoreCorrupt, UnknownName
from mechvis.models.load import wrap
from mechvis.testing import assert_close, tiny, tiny_input, tiny_preprocess

SITE = "blocks.1.attn.hook_z"
N, TOKENS, HEADS, WIDTH = 4, 10, 4, 4


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("vit", dtype=torch.float64), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", n=N, dtype=torch.float64)


@pytest.fixture(scope="module")
def other():
    return tiny_input("vit", n=N, seed=9, dtype=torch.float64)


@pytest.fixture(scope="module")
def clean(model, pixels):
    # Without scores and patterns: asking for those switches fused attention off, which rounds differently.
    return model.run(pixels, capture=[site.name for site in model.graph if not site.on_demand])


@pytest.fixture(scope="module")
def corrupt(model, other):
    return model.run(other, capture="*")


@pytest.fixture(scope="module")
def reference(model, other):
    return mechvis.means(model, other, "*")


def at(model, pixels, edit, site=SITE):
    """The activation at the site, with the edit (or edits) applied."""
    return model.run(pixels, edits=edit, capture=[site]).cache[site]


# every kind against plain indexing

ROWS, PICKED, SOME_HEADS = (0, 2), (1, 5, 7), (1, 3)


def selected(value):
    """A copy, and the part of it that the selection of these tests picks."""
    copy = value.clone()
    index = torch.meshgrid(torch.tensor(ROWS), torch.tensor(PICKED), torch.tensor(SOME_HEADS), indexing="ij")
    return copy, index


SELECT = {"rows": ROWS, "tokens": PICKED, "heads": SOME_HEADS}


def test_zero(model, pixels, clean):
    expected, index = selected(clean.cache[SITE])
    expected[index] = 0
    assert torch.equal(at(model, pixels, edits.zero(SITE, **SELECT)), expected)


def test_scale(model, pixels, clean):
    expected, index = selected(clean.cache[SITE])
    expected[index] *= -0.5
    assert torch.equal(at(model, pixels, edits.scale(SITE, -0.5, **SELECT)), expected)


def test_add(model, pixels, clean):
    vector = torch.arange(WIDTH, dtype=torch.float64)
    expected, index = selected(clean.cache[SITE])
    expected[index] += 3 * vector
    assert torch.equal(at(model, pixels, edits.add(SITE, vector, 3.0, **SELECT)), expected)


def test_add_broadcasts_over_rows_and_tokens(model, pixels, clean):
    full = torch.randn(N, TOKENS, HEADS, WIDTH, dtype=torch.float64)
    assert torch.equal(at(model, pixels, edits.add(SITE, full)), clean.cache[SITE] + full)
    per_token = torch.randn(TOKENS, 1, WIDTH, dtype=torch.float64)
    assert torch.equal(at(model, pixels, edits.add(SITE, per_token)), clean.cache[SITE] + per_token)
    stream = torch.randn(TOKENS, 16, dtype=torch.float64)
    site = "blocks.1.hook_resid_mid"
    assert torch.equal(at(model, pixels, edits.add(site, stream), site), clean.cache[site] + stream)


def test_patch_takes_the_same_row(model, pixels, clean, corrupt):
    expected, index = selected(clean.cache[SITE])
    expected[index] = corrupt.cache[SITE][index]
    assert torch.equal(at(model, pixels, edits.patch(SITE, corrupt.cache, **SELECT)), expected)
    assert torch.equal(at(model, pixels, edits.patch(SITE, corrupt.cache[SITE], **SELECT)), expected)


def test_patch_with_source_rows(model, pixels, clean, corrupt):
    source = corrupt.cache[SITE][[3, 3, 0, 1]]
    expected, index = selected(clean.cache[SITE])
    expected[index] = source[index]
    assert torch.equal(at(model, pixels, edits.patch(SITE, corrupt.cache, [3, 3, 0, 1], **SELECT)), expected)
    one = at(model, pixels, edits.patch(SITE, corrupt.cache, 2))
    assert torch.equal(one, corrupt.cache[SITE][2:3].expand_as(one))


def test_resample(model, pixels, clean, corrupt):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5)).tolist()
    drawn = at(model, pixels, edits.resample(SITE, corrupt.cache, seed=5))
    assert torch.equal(drawn, corrupt.cache[SITE][order])
    assert torch.equal(drawn, at(model, pixels, edits.resample(SITE, corrupt.cache, order)))
    with pytest.raises(BadData, match=r"source_rows=.*or seed="):
        edits.resample(SITE, corrupt.cache)


def test_freeze(model, pixels, other, clean):
    run = model.run(other, edits=[edits.freeze("blocks.*.attn.hook_z", clean.cache)], capture="blocks.*.attn.hook_z")
    for layer in range(3):
        assert torch.equal(run.cache["z", layer], clean.cache["z", layer])


def test_means(model, pixels, corrupt, reference):
    positional = at(model, pixels, edits.mean_positional(SITE, reference))
    expected = corrupt.cache[SITE].mean(0)
    assert_close(positional, expected.expand_as(positional), 1e-14)
    flat = at(model, pixels, edits.mean(SITE, reference))
    assert_close(flat, expected.mean(0).expand_as(flat), 1e-14)
    assert reference.n == N


def test_project(model, pixels, clean):
    site = "blocks.0.hook_resid_post"
    directions = torch.randn(3, 16, dtype=torch.float64)
    got = at(model, pixels, edits.project(site, directions, tokens=[0]), site)
    assert (got[:, 0] @ directions.T).abs().max() < 1e-12
    assert torch.equal(got[:, 1:], clean.cache[site][:, 1:])
    removed = (clean.cache[site] - got)[:, 0]
    back = torch.linalg.lstsq(directions.T, removed.T).solution.T @ directions
    assert_close(back, removed, 1e-12)  # what was removed lies in the span
    per_head = at(model, pixels, edits.project(SITE, directions[0, :4], heads=[2]))
    assert (per_head[:, :, 2] @ directions[0, :4]).abs().max() < 1e-12
    assert torch.equal(per_head[:, :, [0, 1, 3]], clean.cache[SITE][:, :, [0, 1, 3]])


def test_call(model, pixels, clean):
    expected, index = selected(clean.cache[SITE])
    expected[index] = expected[index].tanh()
    seen = []
    edit = edits.call(SITE, lambda x: seen.append(x.shape) or x.tanh(), **SELECT)
    assert torch.equal(at(model, pixels, edit), expected)
    assert seen == [(2, 3, 2, WIDTH)]
    site = "blocks.0.mlp.hook_post"
    got = at(model, pixels, edits.call(site, lambda x: x * 2, units=[3, 30]), site)
    expected = clean.cache[site].clone()
    expected[..., [3, 30]] *= 2
    assert torch.equal(got, expected)


def test_call_must_keep_the_shape(model, pixels):
    with pytest.raises(ShapeMismatch, match=r"must return a tensor of shape \[4, 10, 4, 4\], got \[4, 10, 4\]"):
        at(model, pixels, edits.call(SITE, lambda x: x.sum(-1)))
    with pytest.raises(ShapeMismatch, match="got NoneType"):
        at(model, pixels, edits.call(SITE, lambda x: None))


# selections


def test_units_and_heads_together(model, pixels, clean):
    expected = clean.cache[SITE].clone()
    expected[:, :, 2, [0, 3]] = 0
    assert torch.equal(at(model, pixels, edits.zero(SITE, heads=[2], units=[0, -1])), expected)


def test_neurons(model, pixels, clean, corrupt):
    site = "blocks.2.mlp.hook_post"
    expected = clean.cache[site].clone()
    expected[:, [0, 9], 5] = corrupt.cache[site][:, [0, 9], 5]
    assert torch.equal(at(model, pixels, edits.patch(site, corrupt.cache, tokens=[0, 9], units=[5]), site), expected)


@pytest.mark.parametrize("name,tokens", [("cls", [0]), ("prefix", [0]), ("patches", list(range(1, 10)))])
def test_token_names(model, pixels, clean, name, tokens):
    expected = clean.cache[SITE].clone()
    expected[:, tokens] = 0
    assert torch.equal(at(model, pixels, edits.zero(SITE, tokens=name)), expected)


def test_token_names_with_two_prefix_tokens():
    model, pixels = wrap(tiny("deit"), preprocess=tiny_preprocess()), tiny_input("vit")
    for name, tokens in (("cls", [0]), ("prefix", [0, 1]), ("patches", list(range(2, 11)))):
        got = at(model, pixels, edits.zero(SITE, tokens=name))
        assert (got[:, tokens] == 0).all() and (got == 0).sum() == got[:, tokens].numel()
    with pytest.raises(BadData, match=r"no registers token; its prefix is \['cls', 'distillation'\]"):
        at(model, pixels, edits.zero(SITE, tokens="registers"))


def test_token_masks(model, pixels, clean):
    per_patch = torch.zeros(9, dtype=torch.bool)
    per_patch[[2, 4]] = True
    expected = clean.cache[SITE].clone()
    expected[:, [3, 5]] = 0  # patches come after CLS
    assert torch.equal(at(model, pixels, edits.zero(SITE, tokens=per_patch)), expected)
    assert torch.equal(
        at(model, pixels, edits.zero(SITE, tokens=torch.cat([torch.tensor([False]), per_patch]))), expected
    )


def test_a_mask_per_row(model, pixels, clean, corrupt):
    mask = torch.rand(N, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    full = torch.cat([torch.zeros(N, 1, dtype=torch.bool), mask], dim=1)
    expected = torch.where(full[:, :, None, None], corrupt.cache[SITE], clean.cache[SITE])
    assert torch.equal(at(model, pixels, edits.patch(SITE, corrupt.cache, tokens=mask)), expected)
    site, directions = "blocks.1.hook_resid_pre", torch.eye(16, dtype=torch.float64)[:2]
    got = at(model, pixels, edits.project(site, directions, tokens=mask), site)
    assert (got[full][:, :2].abs() < 1e-12).all() and torch.equal(got[~full], clean.cache[site][~full])


def test_rows_carry_different_edits(model, pixels, clean, corrupt):
    several = [
        edits.zero(SITE, rows=[0], heads=[1]),
        edits.patch(SITE, corrupt.cache, rows=[1], heads=[2]),
        edits.add(SITE, torch.ones(4, dtype=torch.float64), rows=[2], tokens=[0]),
        edits.scale(SITE, 2, rows=[3], heads=[0]),
    ]
    together = model.run(pixels, edits=several, capture=[SITE, "hook_logits"])
    for row, edit in enumerate(several):
        alone = model.run(pixels, edits=[edit], capture=[SITE])
        assert torch.equal(together.cache[SITE][row], alone.cache[SITE][row])
        assert_close(together.logits[row], alone.logits[row], 1e-13)
        others = [r for r in range(N) if r != row]
        assert torch.equal(alone.cache[SITE][others], clean.cache[SITE][others])


def test_heads_of_the_pattern_are_on_the_second_axis(model, pixels, clean):
    site = "blocks.1.attn.hook_pattern"
    expected = model.run(pixels, capture=[site]).cache[site].clone()
    expected[:, 2, 0] = 0  # head 2, query CLS
    assert torch.equal(at(model, pixels, edits.zero(site, heads=[2], tokens=[0]), site), expected)
    uniform = edits.call(site, lambda x: torch.full_like(x, 0.1), heads=[1])
    got = model.run(pixels, edits=[uniform], capture=[SITE, "blocks.1.attn.hook_v"])
    mean = got.cache["v", 1][:, :, 1].mean(1, keepdim=True)
    assert_close(got.cache[SITE][:, :, 1], mean.expand(-1, TOKENS, -1).contiguous(), 1e-14)


def test_pooled_sites_take_edits(model, pixels, clean):
    expected = clean.cache["hook_pooled"].clone()
    expected[1, 3] = 0
    assert torch.equal(at(model, pixels, edits.zero("hook_pooled", rows=[1], units=[3]), "hook_pooled"), expected)


def test_a_pattern_edits_every_matching_site(model, pixels):
    run = model.run(pixels, edits=[edits.zero("blocks.*.attn.hook_z", heads=[0])], capture="blocks.*.attn.hook_z")
    assert all((run.cache["z", layer][:, :, 0] == 0).all() for layer in range(3))


def test_edits_of_result_change_the_write_of_one_head_only(model, pixels, clean):
    # Zeroing a head's result is zeroing its z.
    one = model.run(pixels, edits=[edits.zero("blocks.1.attn.hook_result", heads=[2])]).logits
    assert_close(one, model.run(pixels, edits=[edits.zero(SITE, heads=[2])]).logits, 1e-13)


def test_later_edits_see_earlier_ones(model, pixels, clean):
    chain = [
        edits.zero(SITE, heads=[1]),
        edits.add(SITE, torch.ones(4, dtype=torch.float64), heads=[1]),
        edits.call(SITE, lambda x: x * 3, heads=[1, 2]),
        edits.scale(SITE, 2, heads=[1], units=[0]),
    ]
    expected = clean.cache[SITE].clone()
    expected[:, :, 1] = 3
    expected[:, :, 2] *= 3
    expected[:, :, 1, 0] = 6
    assert torch.equal(at(model, pixels, chain), expected)


def test_edits_do_not_change_what_was_captured_before_them(model, pixels, clean):
    run = model.run(pixels, edits=[edits.zero(SITE)], capture="*")
    for name in model.graph.names:
        if name == SITE:
            break
        if name in clean.cache and name.startswith(("hook_embed", "blocks.0.ln1", "blocks.0.attn.hook_q")):
            assert torch.equal(run.cache[name], clean.cache[name]), name
        elif name in clean.cache:
            assert_close(run.cache[name], clean.cache[name], 1e-13, name)


# values as values


def test_edits_print_compare_and_hash():
    one, same, other = (edits.zero(SITE, heads=h) for h in ([1], (1,), [2]))
    assert one == same and hash(one) == hash(same) and one != other and len({one, same, other}) == 2
    assert repr(one) == "edits.zero('blocks.1.attn.hook_z', heads=[1])"
    vector = torch.ones(4)
    assert edits.add(SITE, vector) == edits.add(SITE, vector.clone()) != edits.add(SITE, vector * 2)
    assert (
        repr(edits.add(SITE, vector, 2.5, tokens="cls"))
        == "edits.add('blocks.1.attn.hook_z', tokens='cls', factor=2.5)"
    )
    f, g = (lambda x: x), (lambda x: x)
    assert edits.call(SITE, f) == edits.call(SITE, f) != edits.call(SITE, g)
    assert "mask[9]" in repr(edits.zero(SITE, tokens=torch.ones(9, dtype=torch.bool)))
    assert len({edits.patch(SITE, torch.full((2, 3), v)).fingerprint for v in (0.0, 1.0)}) == 2
    assert edits.add(SITE, torch.tensor(1.0)).fingerprint  # a scalar has a fingerprint too


@pytest.mark.parametrize("bad", [{"rows": []}, {"heads": [1, 1]}, {"units": []}, {"tokens": [2, 2]}])
def test_empty_and_repeated_selections(bad):
    with pytest.raises(BadData, match=r"selects nothing|repeats"):
        edits.zero(SITE, **bad)


def test_bad_token_selections():
    with pytest.raises(UnknownName, match=r"unknown token group 'clss'. Nearest: cls"):
        edits.zero(SITE, tokens="clss")
    with pytest.raises(ShapeMismatch, match=r"bool \[token\] or \[row token\], got torch.float32 \[9\]"):
        edits.zero(SITE, tokens=torch.ones(9))


def test_bad_directions():
    for bad in (torch.zeros(16), torch.full((2, 16), float("nan")), torch.ones(2, 2, 2)):
        with pytest.raises(ShapeMismatch, match="finite, non-zero"):
            edits.project(SITE, bad)


def test_save_and_load(model, pixels, corrupt, reference, tmp_path):
    mask = torch.rand(N, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    several = [
        edits.zero(SITE, rows=[0, 2], heads=[1]),
        edits.patch(
            "blocks.*.attn.hook_z",
            {k: corrupt.cache[k] for k in model.graph.match("*hook_z")},
            [3, 2, 1, 0],
            tokens=mask,
        ),
        edits.mean_positional(
            "blocks.0.mlp.hook_post", {"blocks.0.mlp.hook_post": reference["blocks.0.mlp.hook_post"]}, units=[4, 5]
        ),
        edits.add("blocks.0.hook_resid_post", torch.arange(16.0, dtype=torch.float64), 0.25, tokens="cls"),
        edits.scale("hook_embed", 1.5, tokens=[1, 2]),
        edits.project("blocks.2.hook_resid_pre", torch.randn(2, 16)),
    ]
    path = edits.save(several, tmp_path / "deep" / "mine")
    assert path.name == "mine.json" and json.loads(path.read_text())["version"] == 1
    read = edits.load(path)
    assert read == several and list(map(repr, read)) == list(map(repr, several))
    assert torch.equal(model.run(pixels, edits=read).logits, model.run(pixels, edits=several).logits)


def test_save_refuses_functions_and_bad_places(tmp_path):
    with pytest.raises(BadData, match="carries a Python function"):
        edits.save([edits.call(SITE, torch.tanh)], tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable, match="cannot write edits to"):
        edits.save([edits.zero(SITE)], tmp_path / "file" / "x")


def test_load_refuses_broken_files(tmp_path):
    with pytest.raises(StoreCorrupt, match="not a readable edit file"):
        edits.load(tmp_path / "absent")
    path = edits.save([edits.zero(SITE)], tmp_path / "e")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(StoreCorrupt):
        edits.load(path)
    path = edits.save([edits.zero(SITE)], tmp_path / "e")
    path.write_text(path.read_text().replace('"zero"', '"zeroo"'))
    with pytest.raises(UnknownName, match="unknown edit kind 'zeroo'"):
        edits.load(path)


# algebra

heads_of = st.sets(st.integers(0, HEADS - 1), min_size=1)
tokens_of = st.sets(st.integers(0, TOKENS - 1), min_size=1)


def picks(draw):
    return {"heads": sorted(draw(heads_of)), "tokens": sorted(draw(tokens_of))}


@given(data=st.data())
def test_patch_after_patch_is_the_last_patch(model, pixels, corrupt, clean, data):
    where = picks(data.draw)
    first = torch.randn(N, TOKENS, HEADS, WIDTH, dtype=torch.float64)
    chain = [edits.patch(SITE, first, **where), edits.patch(SITE, corrupt.cache, **where)]
    assert torch.equal(at(model, pixels, chain), at(model, pixels, chain[1:]))


@given(data=st.data())
def test_ablating_a_then_b_is_ablating_both(model, pixels, data):
    a, b = picks(data.draw), picks(data.draw)
    union = torch.zeros(TOKENS, HEADS, dtype=torch.bool)
    for one in (a, b):
        union[torch.tensor(one["tokens"])[:, None], torch.tensor(one["heads"])] = True
    run = model.run(pixels, edits=[edits.zero(SITE, **a), edits.zero(SITE, **b)], capture=[SITE])
    per_head = [edits.zero(SITE, heads=[h], tokens=union[:, h]) for h in range(HEADS) if union[:, h].any()]
    both = model.run(pixels, edits=per_head, capture=[SITE])
    assert torch.equal(run.cache[SITE], both.cache[SITE]) and torch.equal(run.logits, both.logits)


@given(rows=st.permutations(range(N)))
def test_permuting_a_batch_permutes_the_results(model, pixels, rows):
    edit = edits.zero(SITE, heads=[1], tokens="patches")
    assert_close(model.run(pixels[rows], edits=[edit]).logits, model.run(pixels, edits=[edit]).logits[rows], 1e-13)


# an edit that changes nothing changes exactly nothing, at every site


def no_ops(name, cache):
    value = cache[name]
    width = value.shape[-1]
    yield edits.scale(name, 1.0)
    yield edits.add(name, torch.zeros(width, dtype=value.dtype))
    yield edits.patch(name, cache)
    yield edits.freeze(name, cache)
    yield edits.resample(name, cache, list(range(N)))
    yield edits.call(name, lambda x: x.clone())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_op_edits_change_exactly_nothing_at_any_site(attention):
    model = wrap(tiny("vit", attention=attention, num_hidden_layers=1), preprocess=tiny_preprocess())
    pixels = tiny_input("vit", n=N)
    for name in model.graph.names:
        baseline = model.run(pixels, capture=[name])  # capturing a pattern alone already chooses explicit attention
        for edit in no_ops(name, baseline.cache):
            with pytest.warns(EffectlessEdit, match="changed nothing at"):
                run = model.run(pixels, edits=[edit], capture=[name])
            assert torch.equal(run.cache[name], baseline.cache[name]), f"{edit}"
            if name.endswith(("hook_scale", "hook_result")):
                # These re-enter through another order of the same operations.
                assert_close(run.logits, baseline.logits, 1e-5, f"{edit}")
            else:
                assert torch.equal(run.logits, baseline.logits), f"{edit}"


@pytest.mark.parametrize("kind", ["zero", "mean", "mean_positional", "project"])
def test_no_op_ablations(kind):
    model = wrap(tiny("vit", num_hidden_layers=1), preprocess=tiny_preprocess())
    pixels = tiny_input("vit", n=1).expand(N, -1, -1, -1)
    clean, name = model.run(pixels), "blocks.0.hook_mlp_out"
    silence = edits.zero(name)
    silent = model.run(pixels, edits=[silence])
    zeros = {name: torch.zeros(TOKENS, 16)}
    again = {
        "zero": lambda: edits.zero(name),
        "mean": lambda: edits.mean(name, zeros),
        "mean_positional": lambda: edits.mean_positional(name, zeros),
        "project": lambda: edits.project(name, torch.eye(16)[:3]),
    }
    assert torch.equal(model.run(pixels, edits=[silence, again[kind]()]).logits, silent.logits)
    assert not torch.equal(silent.logits, clean.logits)
