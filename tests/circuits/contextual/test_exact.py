"""What must hold exactly: the halves add up, the fast twin agrees with the plain one, all-rest is ablation."""

import itertools
from dataclasses import replace

import pytest
import torch

import mechvis
from circuits.contextual import PRESETS, Rules, contextual, decompose
from circuits.contextual.sources import sources_of
from mechvis import edits
from mechvis.errors import RefusedMethod

FAMILIES = (
    "vit",
    "deit-distilled",
    "clip-vision",
    "clip text",
    "beit-mean",
    "beit-shared",
    "siglip-vision",
    "siglip text",
    "dinov2-swiglu",
    "dinov2-registers-classifier",
    "dinov3-gated",
    "odd",
)
CROOKED = ("odd",)
"""Families with a part that is neither a linear map nor a norm where the published rules have to look into it."""

COMBINATIONS = [
    Rules(bias=bias, ln=ln, pattern=pattern, act=act, cancel=cancel)
    for bias, ln, pattern, act, cancel in itertools.product(
        ("rest", "share"), ("rest", "total"), ("total", "source", "rest"), ("rest", "shapley"), (False, "maps", "mlp")
    )
]
SOME = (PRESETS["default"], PRESETS["published"], replace(PRESETS["published"], pattern="source", act="shapley"))
JOINT = ["L0H1", "L0MLP", "L1H2"]


@pytest.mark.parametrize("rules", COMBINATIONS, ids=lambda r: f"{r.bias}-{r.ln}-{r.pattern}-{r.act}-{r.cancel}")
def test_halves_add_up_at_every_site_for_all_rules(f1, rules):
    halves = f1.plain(JOINT, rules)
    fast = f1.batched([JOINT], rules)
    assert set(halves) == set(f1.sites) and len(f1.sites) == 3 * 13 + 3
    for site in f1.sites:
        beta, gamma, _ = halves[site]
        assert f1.gap(beta + gamma, f1.run.cache[site], site) < 1e-9
        assert f1.gap(fast.total[site], f1.run.cache[site], site) < 1e-9
        assert f1.gap(fast.beta[site][0], beta, site) < 1e-9
        assert f1.gap(fast.gamma(site)[0], gamma, site) < 1e-9


@pytest.mark.parametrize("paths", ["all", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
def test_twins_agree_and_add_up_in_every_family(bench, family, paths):
    at = bench(family)
    sources = ["L0H1", JOINT, "L1 neuron 3", "L2 attn_out"] + (["pool H1"] if at.model.parts.pooling else [])
    for rules in SOME:
        if family in CROOKED and rules.bias == "share":
            continue
        fast = at.batched(sources, rules, paths=paths)
        for row, source in enumerate(sources):
            halves = at.plain(source, rules, direct=paths == "direct")
            for site in at.sites:
                beta, gamma, _ = halves[site]
                assert at.gap(beta + gamma, at.run.cache[site], site) < 1e-9, site
                assert at.gap(fast.beta[site][row], beta, site) < 1e-9, site


def ablation(at, source):
    """Edits that do to a run what a source stands for."""
    made = []
    for piece in source.pieces:
        selection = {} if piece.axis is None else {{-2: "heads", -1: "units"}[piece.axis]: [piece.index]}
        if piece.tokens is not None:
            selection["tokens"] = list(piece.tokens)
        made.append(edits.mean_positional(piece.site, at.means, **selection))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_all_rest_is_mean_ablation_at_every_site(bench, family):
    at = bench(family)
    names = ["L0H1", "L2H3", "L0MLP", "L1 neuron 3", "L1 attn_out", "L1 token 4", "embed", JOINT]
    sources = sources_of(at.model, names + (["pool H1"] if at.model.parts.pooling else []))
    found = at.batched(sources, "all_rest")
    moved = 0
    for row, source in enumerate(sources):
        run = at.model.run(at.images, edits=ablation(at, source), capture=at.sites)
        for site in at.sites:
            assert at.gap(found.gamma(site)[row], run.cache[site], site) < 1e-10, (source.name, site)
        last = at.sites[-1]
        moved += at.gap(run.cache[last], at.run.cache[last], last) > 1e-3
    assert moved >= len(sources) - 1  # a neuron may do little; everything else changes the output


@pytest.mark.parametrize("kind", ["heads", "mlp_out", "neurons", "attn_out"])
@pytest.mark.parametrize("edit", ["mean_positional", "mean", "zero", "resample", "patch"])
def test_all_rest_is_a_sweep(f1, kind, edit):
    more = {"reference": f1.reference} if edit.startswith("mean") else {}
    more |= {"source": f1.reference[:3]} if edit == "patch" else {}
    mine = contextual(f1.model, f1.images, sources=kind, edit=edit, rules="all_rest", progress=False, **more)
    swept = mechvis.sweep(f1.model, f1.images, units=kind, edit=edit, progress=False, **more)
    size = abs(swept.values["logit_diff"]).max()
    assert abs(mine.values["logit_diff"] - swept.values["logit_diff"]).max() < 1e-10 * size
    assert mine.baseline["logit_diff"] == pytest.approx(swept.baseline["logit_diff"])
    assert mine.table["unit"].to_list() == [name.replace(" mlp_out", "MLP") for name in swept.table["unit"].to_list()]


def test_default_rules_are_not_ablation(f1):
    mine = contextual(f1.model, f1.images, reference=f1.reference, progress=False).values["logit_diff"]
    swept = mechvis.sweep(
        f1.model, f1.images, units="heads", edit="mean_positional", reference=f1.reference, progress=False
    ).values["logit_diff"]
    assert abs(mine[:8] - swept[:8]).max() > 1e-3 * abs(swept).max()
    # The last block's heads pass no pattern any more.
    assert abs(mine[8:] - swept[8:]).max() < 1e-12 * abs(swept).max()


def test_last_block_is_exact_for_the_published_pattern_with_norms_and_biases_at_rest(bench):
    at = bench("beit-mean")
    mine, swept = (
        contextual(at.model, at.images, reference=at.reference, rules=rules, layers=[2], progress=False)
        for rules in (replace(PRESETS["published"], bias="rest", ln="rest"), "all_rest")
    )
    assert abs(mine.values["logit_diff"] - swept.values["logit_diff"]).max() < 1e-12


@pytest.mark.parametrize("family", ["vit", "clip-vision", "beit-mean", "dinov2-swiglu"])
@pytest.mark.parametrize("pattern", ["total", "source"])
def test_full_source_takes_all_and_empty_source_nothing(bench, family, pattern):
    at = bench(family)
    rules = replace(PRESETS["published"], pattern=pattern)
    (whole,) = sources_of(at.model, ["embed"])
    n_tokens = at.run.cache["blocks.0.hook_resid_pre"].shape[1]
    nothing = whole.at("nowhere", torch.zeros(1, n_tokens, dtype=torch.bool))
    found = at.batched([whole, nothing], rules, edit="zero", reference=None)
    halves = at.plain(whole, rules, values=lambda site: None)
    for site in at.sites:
        # Gamma by difference is a rounding error there, which a share sees magnified where beta is small too.
        assert at.gap(found.beta[site][0], at.run.cache[site], site) < 1e-9, site
        assert (halves[site].gamma == 0).all(), site
        assert (found.beta[site][1] == 0).all(), site


def test_with_biases_at_rest_a_full_source_does_not_take_all(f1):
    found = f1.batched(["embed"], "default", edit="zero", reference=None)
    assert found.gamma("hook_logits").abs().max() > 0.01


@pytest.mark.parametrize("family", ["vit", "beit-shared", "dinov3-gated", "siglip-vision"])
def test_direct_paths_are_runs_with_everything_else_frozen(bench, family):
    """All-rest on direct paths: the source ablated, what all others wrote held, targets in between read off."""
    at = bench(family)
    last = at.sites[-1]
    writes = ["blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    writes += ["blocks.2.hook_attn_out", "blocks.2.hook_mlp_out"]
    reads = ["blocks.1.attn.hook_q", "blocks.1.attn.hook_z", "blocks.2.attn.hook_k", "blocks.2.attn.hook_z"]
    reads += ["blocks.2.mlp.hook_pre", last]
    found = at.batched(["L0H1"], "all_rest", paths="direct", sites=reads)
    frozen = [edits.freeze(site, at.run.cache) for site in writes]
    run = at.model.run(at.images, edits=[*ablation(at, sources_of(at.model, ["L0H1"])[0]), *frozen], capture=reads)
    for site in reads:
        assert at.gap(found.gamma(site)[0], run.cache[site], site) < 1e-10, site
        assert found.beta[site].abs().max() > 0


def test_direct_paths_of_an_mlp_and_of_a_neuron(f1):
    reads = ["blocks.1.attn.hook_z", "blocks.2.attn.hook_z", "hook_logits"]
    found = f1.batched(["L0MLP", "L0 neuron 5"], "all_rest", paths="direct", sites=reads)
    writes = [f"blocks.{layer}.{write}" for layer in (1, 2) for write in ("hook_attn_out", "hook_mlp_out")]
    frozen = [edits.freeze(site, f1.run.cache) for site in writes]
    for row, source in enumerate(sources_of(f1.model, ["L0MLP", "L0 neuron 5"])):
        run = f1.model.run(f1.images, edits=[*ablation(f1, source), *frozen], capture=reads)
        for site in reads:
            assert f1.gap(found.gamma(site)[row], run.cache[site], site) < 1e-10


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_lots_of_any_size_give_the_same(f1, batch_size):
    sources = ["L2H0", "embed", JOINT, "L1MLP", "L0H0"]  # not in the order of layers
    some = f1.batched(sources, "published", batch_size=batch_size)
    other = f1.batched(sources, "published")
    for site in f1.sites:
        assert f1.gap(some.beta[site], other.beta[site], site) < 1e-12
    assert some.sources == ("L2H0", "embed", "L0H1 + L0MLP + L1H2", "L1MLP", "L0H0")


def test_sources_whose_tokens_differ_between_images(f1):
    masks = torch.zeros(3, 10, dtype=torch.bool)
    for image, token in enumerate((1, 4, 7)):
        masks[image, [token, token + 1]] = True
    source = sources_of(f1.model, ["L0H1"])[0].at("object", masks)
    found = f1.batched([source], "all_rest", batch_size=2)
    edit = edits.mean_positional("blocks.0.attn.hook_z", f1.means, heads=[1], tokens=masks)
    run = f1.model.run(f1.images, edits=[edit], capture=f1.sites)
    for site in f1.sites:
        assert f1.gap(found.gamma(site)[0], run.cache[site], site) < 1e-10


@pytest.mark.parametrize("family", CROOKED)
def test_rules_that_must_look_into_a_part_refuse_where_they_cannot(bench, family):
    at = bench(family)
    site = ["blocks.1.attn.hook_q"]
    with pytest.raises(RefusedMethod, match=r"blocks.0.attn.hook_q of this model is neither a linear map nor a norm"):
        at.batched(["L0H1"], replace(PRESETS["published"], pattern="rest"), sites=["hook_logits"])
    with pytest.raises(RefusedMethod, match=r"Use rules='default'"):
        at.batched(["L0H1"], "published", sites=site)
    # Where queries and keys are not split nobody has to look into them.
    published = at.batched(["L0H1"], "published", sites=["hook_logits"])
    assert published.beta["hook_logits"].abs().max() > 0
    assert at.batched(["L0H1"], "default", sites=site).beta[site[0]].abs().max() > 0


def test_a_pooler_with_tanh_is_refused_by_published_rules_only(bench):
    at = bench("vit-base")
    with pytest.raises(RefusedMethod, match="project of this model"):
        at.batched(["L0H1"], "published")
    assert at.batched(["L0H1"], "all_rest").beta["hook_embedding"].abs().max() > 0


def test_a_norm_that_is_put_together_differently_is_refused(f1):
    from mechvis.hooked import HookedViT

    class Shifted(torch.nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) * 1.5

    norm = Shifted(16, dtype=torch.float64)
    odd = HookedViT(f1.model.bare, replace(f1.model.parts, ln_final=norm), preprocess=f1.model.preprocess)
    more = {"reference": f1.reference, "progress": False}
    with pytest.raises(RefusedMethod, match=r"ln_final of this model \(Shifted\) is no LayerNorm or RMSNorm"):
        contextual(odd, f1.images, rules="published", **more)
    mine = contextual(odd, f1.images, rules="all_rest", **more).values["logit_diff"]
    swept = mechvis.sweep(odd, f1.images, edit="mean_positional", **more).values["logit_diff"]
    assert abs(mine - swept).max() < 1e-12


def test_low_precision_and_the_model_as_it_came(bench):
    from mechvis import testing
    from mechvis.models.load import wrap

    bare = testing.tiny("vit", dtype=torch.float32)
    model = wrap(bare, preprocess=testing.tiny_preprocess())
    at = bench("vit")
    with testing.assert_untouched(bare):
        single = contextual(model, at.images.float(), reference=at.reference.float(), progress=False)
    double = contextual(at.model, at.images, reference=at.reference, progress=False)
    size = abs(double.values["logit_diff"]).max()
    assert abs(single.values["logit_diff"] - double.values["logit_diff"]).max() < 2e-5 * size


def test_a_full_source_takes_all_in_single_precision_too(bench):
    from mechvis import testing
    from mechvis.models.load import wrap

    at = bench("vit")
    model = wrap(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
    found = decompose(model, at.images.float(), ["embed"], "hook_logits", rules="published", edit="zero")
    gamma = found.gamma("hook_logits")
    assert gamma.abs().max() < 1e-4 * found.total["hook_logits"].abs().max()
