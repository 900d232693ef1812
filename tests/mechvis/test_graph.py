"""The hook graph: names, shapes, edges, matching, suggestions."""

import random

import pytest

from mechvis.errors import OutOfRange, UnknownSite, nearest
from mechvis.models.load import wrap
from mechvis.testing import shortcut_vit, tiny, tiny_families, tiny_input, tiny_preprocess


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("vit"), preprocess=tiny_preprocess())


def towers():
    for family in tiny_families():
        model = wrap(tiny(family), preprocess=tiny_preprocess())
        for tower in (model.vision, model.text) if hasattr(model, "vision") else (model,):
            yield f"{family} {tower.parts.modality}", tower


@pytest.mark.parametrize("name,tower", [*towers(), ("shortcut", shortcut_vit())])
def test_every_site_fires_once_with_the_declared_shape(name, tower):
    inputs = (
        tower.parts.example(None)
        if name == "shortcut"
        else tiny_input("clip-text" if tower.parts.modality == "text" else "vit")
    )
    run = tower.run(inputs, capture="*")
    assert list(run.cache) == [n for n in tower.graph.names if n in run.cache]
    assert set(run.cache) == set(tower.graph.names)
    for site in tower.graph:
        value = run.cache[site.name]
        assert value.ndim == len(site.axes), site.name
        for size, declared, axis in zip(value.shape, site.sizes, site.axes, strict=True):
            assert declared is None or size == declared, f"{site.name}: {axis} is {size}, declared {declared}"


@pytest.mark.parametrize("name,tower", list(towers()))
def test_the_graph_is_the_tower_of_hook_points(name, tower):
    assert set(tower.graph.names) == set(tower.hook_dict)


def test_edges_point_backwards_and_reach_everything(model):
    order = {name: i for i, name in enumerate(model.graph.names)}
    for site in model.graph:
        assert all(order[read] < order[site.name] for read in site.reads)
    reached = {"hook_embed"}
    for name in model.graph.names:
        if name in reached:
            reached.update(model.graph.readers(name))
    assert reached == set(model.graph.names)


def test_readers(model):
    assert model.graph.readers("blocks.0.hook_resid_mid") == [
        "blocks.0.ln2.hook_scale",
        "blocks.0.ln2.hook_normalized",
        "blocks.0.hook_resid_post",
    ]
    assert model.graph.readers("blocks.2.attn.hook_v") == ["blocks.2.attn.hook_z"]
    assert model.graph.readers("hook_logits") == []


def test_axes(model):
    z, pattern, pooled = (model.graph[n] for n in ("blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern", "hook_pooled"))
    assert (z.axes, z.sizes, z.layer) == (("row", "token", "head", "d_head"), (None, 10, 4, 4), 1)
    assert (z.token_axis, z.head_axis) == (1, 2)
    assert (pattern.head_axis, pattern.token_axis, pattern.on_demand) == (1, None, True)
    assert (pooled.axes, pooled.layer) == (("row", "d_model"), None)


def test_match_keeps_firing_order_and_drops_doubles(model):
    found = model.graph.match(["blocks.2.attn.hook_z", "blocks.*.attn.hook_z", "hook_embed"])
    assert found == ["hook_embed", *(f"blocks.{i}.attn.hook_z" for i in range(3))]


def test_native_names_are_aliases(model):
    assert model.graph.resolve("vit.layers.1.attention.q_proj") == "blocks.1.attn.hook_q"
    assert model.graph.match("vit.layers.*.mlp.fc1") == [f"blocks.{i}.mlp.hook_pre" for i in range(3)]
    assert "vit.layernorm" in model.graph and "vit.nothing" not in model.graph


@pytest.mark.parametrize("name,tower", list(towers()))
def test_native_names_are_paths_of_the_users_module(name, tower):
    paths = {path for path, _ in tower.bare.named_modules()}
    known = [alias for alias in tower.graph.aliases if alias in paths]
    assert len(known) == len(tower.graph.aliases), sorted(set(tower.graph.aliases) - set(known))[:5]


def test_unknown_site_names_the_three_nearest(model):
    with pytest.raises(
        UnknownSite, match=r"no site matches 'blocks\.1\.atn\.hook_z'.*Nearest: blocks\.1\.attn\.hook_z, .*, .*\. print"
    ):
        model.graph.resolve("blocks.1.atn.hook_z")
    with pytest.raises(KeyError):
        model.graph["nope"]


def test_pattern_without_a_match(model):
    with pytest.raises(UnknownSite, match=r"'blocks\.\*\.attn\.hook_zz'"):
        model.graph.match(["hook_embed", "blocks.*.attn.hook_zz"])


@pytest.mark.parametrize("layer", [3, 99, -1])
def test_layer_out_of_range(model, layer):
    with pytest.raises(OutOfRange, match=r"this model has layers 0 to 2"):
        model.graph.match(f"blocks.{layer}.attn.hook_z")


def test_typos_find_the_right_name(model):
    rng, names = random.Random(0), model.graph.names
    hits = 0
    for _ in range(200):
        name = rng.choice(names)
        i = rng.randrange(len(name))
        kind = rng.randrange(3)
        typo = {
            0: name[:i] + name[i + 1 :],
            1: name[:i] + rng.choice("abcxyz") + name[i + 1 :],
            2: name[: max(i - 1, 0)] + name[max(i - 1, 0) : i + 1][::-1] + name[i + 1 :],
        }[kind]
        hits += name in nearest(typo, names)
    assert hits >= 190


def test_printing_shows_sites_once_and_shortens_the_middle(model):
    text = repr(model.graph)
    assert "59 sites" in text and "blocks.1 to blocks.1 alike" in text and "blocks.1.attn.hook_z" not in text
    assert "blocks.2.attn.hook_pattern" in text and "(on demand)" in text
    assert "3 layers x 4 heads x 4" in repr(model)
