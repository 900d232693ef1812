"""Activation patching against its plain twin, against single runs with edits, and against transformer_lens."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.pairs import aligned
from circuits.patching import HeadPart, patch
from circuits.patching.units import PARTS
from mechvis import edits, metrics
from mechvis.patches import patch_maps
from mechvis.units import Unit

# Before block 0 the CLS token is the same in every image, and in the last block most tokens are not read: patching
# them changes nothing, and single runs say so.
pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")

FAMILIES = ("vit", "dinov3", "dinov3-gated", "beit", "beit-mean", "siglip-classifier", "dinov2-registers-classifier")
KINDS = ("heads", "q", "k", "v", "pattern", "attn_out", "mlp_out", "tokens")


def quiet(model, pairs, **more):
    return patch(model, pairs, **{"progress": False, "max_undistinguished": 1.0, **more})


def by_hand(model, pairs, site, way, **selection):
    """Shares of the difference in the logit difference of the two predicted classes, from three runs."""
    clean, corrupt = (model.run(pixels, capture=[site]) for pixels in (pairs.clean, pairs.corrupt))
    base, source = (clean, corrupt) if way == "noise" else (corrupt, clean)
    pixels = pairs.clean if way == "noise" else pairs.corrupt
    patched = model.run(pixels, edits=[edits.patch(site, source.cache, **selection)]).logits
    at, target, other = torch.arange(len(pairs)), clean.logits.argmax(-1), corrupt.logits.argmax(-1)
    other = torch.where(other == target, clean.logits.topk(2).indices[:, 1], other)

    def measured(logits):
        return logits[at, target] - logits[at, other]

    total = measured(clean.logits) - measured(corrupt.logits)
    moved = measured(base.logits) - measured(patched)
    return ((moved if way == "noise" else -moved).mean() / total.mean()).item(), moved.abs().max().item()


SITES = {"heads": "attn.hook_z", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "tokens": "hook_resid_pre"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_is_what_three_runs_give(family, name, kind):
    model, clean, corrupt = family(name)
    pairs = aligned(model, clean, corrupt)
    found, largest = quiet(model, pairs, units=kind), 0.0
    n_units = {"attn_out": 3, "mlp_out": 3, "tokens": 3 * model.parts.n_tokens}.get(kind, 12)
    assert found.table.height == 2 * n_units
    step = 7 if kind == "tokens" else 3
    for row in [*found.table.iter_rows(named=True)][::step]:
        selection = {word + "s": [row[word]] for word in ("head", "token") if row.get(word) is not None}
        site = f"blocks.{row['layer']}.{(SITES | PARTS)[kind]}"
        expected, moved = by_hand(model, pairs, site, row["direction"], **selection)
        assert row["effect"] == pytest.approx(expected, abs=1e-10), row["unit"]
        largest = max(largest, moved)
    assert largest > 1e-3, "nothing was compared"


@pytest.mark.parametrize("name", ["vit", "dinov3", "beit-mean"])
def test_wave_is_the_plain_twin(family, name):
    model, clean, corrupt = family(name)
    pairs = aligned(model, clean, corrupt)
    neurons = [Unit(layer, "neurons", i) for layer in range(3) for i in (0, 9)]
    units = [*KINDS[:7], "result", *neurons, Unit(1, "tokens", 4)]
    chosen = [name for name, function in metrics.METRICS.items() if name != "accuracy"]
    fast = quiet(model, pairs, units=units, metric=chosen)
    slow = quiet(model, pairs, units=units, metric=chosen, engine="plain")
    cut = quiet(model, pairs, units=units, metric=chosen, budget=300_000)
    assert fast.metrics == [f"{metric}[{way}]" for metric in chosen for way in ("noise", "denoise")]
    for metric in fast.metrics:
        for other in (slow, cut):
            assert np.abs(fast.values[metric] - other.values[metric]).max() < 1e-10, metric
    assert fast.table["unit"].to_list() == slow.table["unit"].to_list()
    names = fast.rows()["unit"].to_list()
    assert {"L1H2", "L1H2.q", "L1H2.pattern", "L1H2.result", "L2MLP", "L0 attn_out", "L2 neuron 9"} <= set(names)
    values = dict(zip(names, fast.values["logit_diff[noise]"], strict=True))
    assert np.allclose(values["L1H2"], values["L1H2.result"]), "z and result of a head are one thing"


@pytest.mark.parametrize("name", ["vit", "beit-mean"])
@pytest.mark.parametrize("groups", ["object", (2, 2), {"window": [1, 2], "cls": [0]}], ids=["object", "grid", "list"])
def test_groups_of_patches(family, name, groups):
    """An object is where the clean or the corrupt one is."""
    model, clean, corrupt = family(name)
    generator = torch.Generator().manual_seed(2)
    masks, others = (torch.rand(4, 12, 12, generator=generator) < 0.3 for _ in range(2))
    pairs = aligned(model, clean, corrupt, masks=masks, corrupt_masks=others)
    fast, slow = (quiet(model, pairs, units="patches", groups=groups, engine=e) for e in ("wave", "plain"))
    for metric in fast.metrics:
        assert np.nanmax(np.abs(fast.values[metric] - slow.values[metric])) < 1e-10
    maps = patch_maps(fast, "logit_diff[denoise]")
    assert maps.shape == (4, 3, 3, 3)
    if groups == "object":
        mask = (masks | others)[0].float().unfold(0, 4, 4).unfold(1, 4, 4).mean((2, 3)) >= 0.5
        rows = fast.rows("logit_diff[denoise]")
        assert rows["group"].to_list() == ["object", "background", "prefix"] * 3
        place = rows["unit"].to_list().index("L1 object")
        inside = maps[0, 1][mask.numpy()]
        assert len(inside) and np.allclose(inside, fast.values["logit_diff[denoise]"][place, 0])


def test_a_norm_after_the_mixing_goes_the_plain_way(normed):
    """A patched query of one head changes its neighbours' z there, so replacing one z would be wrong."""
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.rand(5, 1, 2, 2, generator=generator).double() for _ in range(2))
    pairs = aligned(normed, clean, corrupt)
    found, largest = quiet(normed, pairs, units=["q", "k", "v", "pattern", "heads"]), 0.0
    for row in found.table.iter_rows(named=True):
        site = f"blocks.{row['layer']}.{PARTS.get(row['part'], 'attn.hook_z')}"
        expected, moved = by_hand(normed, pairs, site, row["direction"], heads=[row["head"]])
        assert row["effect"] == pytest.approx(expected, abs=1e-10), row["unit"]
        largest = max(largest, moved)
    assert largest > 1e-3


def test_norms_on_queries_and_keys_take_the_short_way(normed, monkeypatch):
    """Without the norm after the mixing the same model's parts of heads go through the wave front."""
    from dataclasses import replace

    from circuits.patching import inside_head

    blocks = tuple(replace(block, attn=replace(block.attn, after=None)) for block in normed.parts.blocks)
    model = mechvis.hooked.HookedViT(normed.bare, replace(normed.parts, blocks=blocks), preprocess=normed.preprocess)
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.rand(5, 1, 2, 2, generator=generator).double() for _ in range(2))
    pairs, made = aligned(model, clean, corrupt), []
    original = inside_head.z_of
    monkeypatch.setattr(inside_head, "z_of", lambda *a, **k: made.append(1) or original(*a, **k))
    units = ["q", "k", "v", "pattern"]
    fast = quiet(model, pairs, units=units)
    assert made
    made.clear()
    slow = quiet(model, pairs, units=units, engine="plain")
    assert not made
    for metric in fast.metrics:
        assert np.abs(fast.values[metric] - slow.values[metric]).max() < 1e-10


def test_values_outweigh_queries_and_keys_where_patterns_are_uniform(family):
    """Queries of zero make every pattern uniform: then only values carry anything, and a head is its values."""
    model, clean, corrupt = family("vit")
    with torch.no_grad():
        for layer in model.bare.vit.layers:
            layer.attention.q_proj.weight.zero_()
            layer.attention.q_proj.bias.zero_()
    pairs = aligned(model, clean, corrupt)
    found = quiet(model, pairs, units=["heads", "q", "k", "v", "pattern"])
    for metric in found.metrics:
        values = dict(zip(found.rows(metric)["unit"], found.values[metric], strict=True))
        for head in ("L0H1", "L2H3"):
            assert np.allclose(values[head], values[f"{head}.v"], atol=1e-12)
            for part in ("q", "k", "pattern"):
                assert np.abs(values[f"{head}.{part}"]).max() < 1e-12


@pytest.mark.parametrize("kind,theirs", [("heads", "out"), ("q", "q"), ("k", "k"), ("v", "v"), ("pattern", "pattern")])
def test_transformer_lens_patches_the_same(family, kind, theirs):
    """Its sweeps put clean activations into the corrupt run and average the metric over the batch: our denoising."""
    from transformer_lens import patching

    model, clean, corrupt = family("vit")
    pairs = aligned(model, clean, corrupt)
    target, contrast = 1, 2
    found = quiet(model, pairs, units=kind, direction="denoise", targets=(target, contrast))
    names = found.table["target"].unique().to_list()

    def metric(logits):
        return (logits[:, target] - logits[:, contrast]).mean()

    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
        raw = getattr(patching, f"get_act_patch_attn_head_{theirs}_all_pos")(model, corrupt, cache, metric)
        before, after = metric(model(corrupt)), metric(model(clean))
    expected = ((raw - before) / (after - before)).numpy()
    assert np.abs(found.cube("layer", "head") - expected).max() < 1e-5  # theirs is kept as float32
    assert np.abs(expected).max() > 1e-2 and names == ["LABEL_1 vs LABEL_2"]


def test_the_whole_stream_carries_the_whole_difference(family):
    """All tokens before block 0 are the image: share 1 in both directions; a part of the stream never is by itself."""
    model, clean, corrupt = family("dinov3")
    pairs = aligned(model, clean, corrupt)
    everything = {"all": list(range(model.parts.n_tokens))}
    found = quiet(model, pairs, units="patches", groups=everything)
    assert np.allclose(found.table["effect"], 1, atol=1e-10)
    assert np.allclose(found.values["logit_diff[noise]"].mean(1), 1)


def test_both_directions_are_the_same_question_asked_of_swapped_halves(family):
    model, clean, corrupt = family("vit")
    labels = torch.arange(4) % 8
    pairs = aligned(model, clean, corrupt, clean_labels=labels, corrupt_labels=labels + 1)
    found, turned = quiet(model, pairs), quiet(model, pairs.reversed())
    first, second = found.rows("logit_diff[noise]"), turned.rows("logit_diff[denoise]")
    assert np.allclose(first["effect"], second["effect"]) and np.allclose(first["raw"], second["raw"])


def test_layers(family):
    """Of kinds and of units, given as anything that can be gone through once."""
    model, clean, corrupt = family("vit")
    pairs = aligned(model, clean, corrupt)
    units = ["heads", "v", Unit(0, "mlp_out"), Unit(2, "mlp_out"), HeadPart(1, "q", 0), HeadPart(2, "q", 3)]
    found = quiet(model, pairs, units=units, layers=iter([-1]))
    names = found.rows("logit_diff[denoise]")["unit"].to_list()
    assert names == [f"L2H{i}" for i in range(4)] + ["L2MLP"] + [f"L2H{i}.v" for i in range(4)] + ["L2H3.q"]
    groups = quiet(model, pairs, units="patches", groups=(1, 1), layers=iter([1]))
    assert groups.table["layer"].to_list() == [1, 1]


def test_kl_compares_with_the_clean_half_in_both_directions(family):
    model, clean, corrupt = family("vit")
    pairs = aligned(model, clean, corrupt)
    found = quiet(model, pairs, metric="kl", units=[Unit(2, "heads", 1)])
    log_p, log_q = (model.run(pixels).logits.log_softmax(-1) for pixels in (clean, corrupt))
    total = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert np.allclose(found.images["clean kl"], 0) and np.allclose(found.images["corrupt kl"], -total)
    cache = model.run(clean, capture=["blocks.2.attn.hook_z"]).cache
    patched = model.run(corrupt, edits=[edits.patch("blocks.2.attn.hook_z", cache, heads=[1])]).logits.log_softmax(-1)
    back = total - (log_p.exp() * (log_p - patched)).sum(-1)
    row = found.rows("kl[denoise]").row(0, named=True)
    assert row["raw"] == pytest.approx(float(back.mean()), abs=1e-12)
    assert row["effect"] == pytest.approx(float(back.mean() / total.mean()), abs=1e-12)


def test_what_the_result_holds(family, tmp_path):
    model, clean, corrupt = family("vit", n=6)
    labels = torch.arange(6) % 8
    pairs = aligned(model, clean, corrupt, clean_labels=labels, corrupt_labels=(labels + 1) % 8, name="two noises")
    found = quiet(model, pairs, units=["heads", HeadPart(1, "q", 0)], out=tmp_path / "run")
    loaded = mechvis.Result.load(tmp_path / "run")
    assert loaded.table.equals(found.table) and loaded.kind == "activation_patching"
    assert found.table["direction"].unique(maintain_order=True).to_list() == ["noise", "denoise"]
    row = found.rows("logit_diff[noise]").filter(found.rows("logit_diff[noise]")["unit"] == "L1H0.q").row(0, named=True)
    assert (row["layer"], row["head"], row["part"]) == (1, 0, "q")
    totals = found.images["clean logit_diff"] - found.images["corrupt logit_diff"]
    at = torch.arange(6)
    by_hand = model.run(clean).logits[at, labels] - model.run(clean).logits[at, (labels + 1) % 8]
    assert np.allclose(found.images["clean logit_diff"], by_hand)
    assert found.images["clean_class"][2] == "LABEL_2" and found.images["corrupt_class"][2] == "LABEL_3"
    for metric in found.metrics:
        rows, values = found.rows(metric), found.values[metric]
        assert np.allclose(rows["effect"], values.mean(1)), "an effect is the mean of its per-pair values"
        assert np.allclose(rows["raw"], rows["effect"] * totals.mean())
        assert np.allclose(rows["effect"], rows["ratio_of_means"])
        shares = values * totals.mean() / totals.to_numpy()
        clear = np.abs(totals) > 0.05 * np.abs(totals).mean()
        assert np.allclose(rows["mean_of_ratios"], shares[:, clear].mean(1))
    facts = found.provenance["patching"]
    assert facts["n"] == 6 and facts["aggregate"] == "ratio_of_means"
    assert "numerator and denominator" in facts["interval"]
    assert facts["metrics"]["logit_diff"]["clean"] == pytest.approx(float(by_hand.mean()))
    assert found.provenance["data"]["name"] == "two noises"
    again = quiet(model, pairs, units=["heads", HeadPart(1, "q", 0)], out=tmp_path / "run")
    assert again.table.equals(found.table), "a finished run is read, not repeated"
    other = quiet(model, pairs, units="heads", aggregate="mean_of_ratios")
    rows = other.rows("logit_diff[noise]")
    assert np.allclose(rows["effect"], rows["mean_of_ratios"])
    assert np.allclose(rows["effect"], np.nanmean(other.values["logit_diff[noise]"], axis=1))


def test_a_run_that_was_interrupted_goes_on(family, tmp_path, monkeypatch):
    """Pieces that are finished are not computed again; other pairs in the same folder are refused."""
    from mechvis import engine
    from mechvis.errors import ResultMismatch

    model, clean, corrupt = family("vit")
    pairs = aligned(model, clean, corrupt)
    whole = quiet(model, pairs, units=["heads", "k"])
    calls, original = [], engine._compute

    def stops(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(engine, "_compute", stops)
    with pytest.raises(KeyboardInterrupt):
        quiet(model, pairs, units=["heads", "k"], out=tmp_path)
    monkeypatch.setattr(engine, "_compute", lambda *args: calls.append(1) or original(*args))
    found = quiet(model, pairs, units=["heads", "k"], out=tmp_path)
    assert len(calls) == 3 + 2, "two of four lots were finished"
    assert found.table.equals(whole.table)
    with pytest.raises(ResultMismatch, match="differs in"):
        quiet(model, pairs[[1, 0, 2, 3]], units=["heads", "k"], out=tmp_path)
