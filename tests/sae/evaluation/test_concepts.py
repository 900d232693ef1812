"""Detectors, sparse probing, absorption, attributes and control: on planted data with a known answer (F17 among it)."""

import numpy as np
import pytest
import torch

import mechvis
import sae
from mechvis.errors import BadData, NotFinite, ShapeMismatch, UnknownName
from sae import baselines
from sae.baselines.fitted import made
from sae.baselines.non_negative import NonNegative
from sae.evaluation.absorption import Absorption, Parent, absorption, scene_hierarchy, shared
from sae.evaluation.attributes import attribute_latents, explained_share
from sae.evaluation.control import Control, control
from sae.evaluation.control_in_model import control_in_model
from sae.evaluation.detectors import Sorted, chance_f1, scores
from sae.evaluation.exchange import exchange, exchanges, weights
from sae.evaluation.probing import concepts_of, sparse_probing
from sae.evaluation.supervised import supervised
from sae.evaluation.written import strengths

# -- detectors -------------------------------------------------------------------------------------------------------


def test_the_best_threshold_is_the_best_of_all():
    generator = np.random.default_rng(0)
    a = np.round(generator.random((40, 6)), 1)  # many ties
    a[:, 0] = 0
    has = generator.random(40) < 0.4
    found = Sorted(a).detectors(has)
    for latent in range(6):
        cuts = [(scores(a[:, latent] > t, has)["f1"], t) for t in np.unique(a[:, latent])]
        best = max((f for f, _ in cuts if not np.isnan(f)), default=0)
        assert found.f1[latent] == pytest.approx(best)
        assert scores(a[:, latent] > found.threshold[latent], has)["f1"] == pytest.approx(best)
    assert found.f1[0] == 0 and np.isinf(found.threshold[0])  # a latent that never varies detects nothing
    assert chance_f1(has) == pytest.approx(scores(np.ones(40, bool), has)["f1"])


def test_detectors_refuse_bad_input():
    with pytest.raises(ShapeMismatch, match=r"\[image latent\]"):
        Sorted(np.ones(3))
    with pytest.raises(NotFinite, match="activations hold NaN"):
        Sorted(np.full((2, 2), np.nan))
    with pytest.raises(BadData, match="images that have it and images that do not"):
        Sorted(np.ones((3, 2))).detectors(np.ones(3, bool))
    with pytest.raises(ShapeMismatch, match=r"bool \[image\], 3 long"):
        Sorted(np.ones((3, 2))).detectors(np.ones(4, bool))


# -- sparse probing --------------------------------------------------------------------------------------------------


def probing_data(n=240, seed=0):
    generator = np.random.default_rng(seed)
    one, two = generator.random(n) < 0.3, generator.random(n) < 0.5
    codes = generator.random((n, 30)) * 0.3
    codes[:, 4] += one  # a latent of its own
    codes[:, [10, 11, 12]] += (0.25 * two)[:, None] + 0.15 * generator.normal(size=(n, 3))  # spread over three
    dense = np.stack([one, two, generator.random(n)], 1) + 0.05 * generator.normal(size=(n, 3))
    return codes, dense, {"one": one, "two": two}


def parts(found, n=120):
    codes, dense, concepts = found
    return (
        (codes[:n], {k: v[:n] for k, v in concepts.items()}, codes[n:], {k: v[n:] for k, v in concepts.items()}),
        (dense[:n], dense[n:]),
    )


def test_probes_find_what_was_planted_and_random_latents_do_not():
    arguments, dense = parts(probing_data())
    found = sparse_probing(*arguments, dense=dense, ks=(1, 4, 99))
    each = {(r["concept"], r["features"], r["k"]): r for r in found.tables["concepts"].iter_rows(named=True)}
    assert each["one", "chosen", 1]["accuracy"] > 0.97
    assert each["two", "chosen", 4]["accuracy"] > each["two", "chosen", 1]["accuracy"] + 0.02
    assert each["two", "random", 1]["accuracy"] < 0.7
    assert found.accuracy("dense")[0] > 0.97 > found.accuracy("random", 1)[0]
    value, low, high = found.accuracy("chosen", 4)
    assert low <= value <= high and {r["k"] for r in found.table.iter_rows(named=True)} == {1, 4, None}
    row = each["one", "chosen", 1]
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def test_shuffled_labels_are_told_no_better_than_by_chance():
    codes, dense, concepts = probing_data()
    order = np.random.default_rng(1).permutation(len(codes))
    arguments, _ = parts((codes, dense, {k: v[order] for k, v in concepts.items()}))
    value, low, high = sparse_probing(*arguments, ks=(4,)).accuracy("chosen", 4)
    assert low < 0.55 and high > 0.45 and abs(value - 0.5) < 0.1


def test_probe_is_scikit_learns_balanced_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    (x, y, z, w), _ = parts(probing_data())
    at = [10]
    centre, scale = x[:, at].mean(0), x[:, at].std(0)
    theirs = LogisticRegression(class_weight="balanced", max_iter=2000).fit((x[:, at] - centre) / scale, y["two"])
    expected = balanced_accuracy_score(w["two"], theirs.predict((z[:, at] - centre) / scale))
    only = [a[:, [10, 0]] for a in (x, z)]
    found = sparse_probing(only[0], {"two": y["two"]}, only[1], {"two": w["two"]}, ks=(1,))
    assert found.accuracy("chosen", 1)[0] == pytest.approx(expected)


def test_concepts_of_scenes():
    found = concepts_of(mechvis.data.scenes(200, seed=3))
    assert {name.split("=")[0] for name in found} == {"class", "background", "colour"} and len(found) == 22


def test_probing_refuses_bad_input():
    (x, y, z, w), _ = parts(probing_data())
    with pytest.raises(BadData, match="the same concepts"):
        sparse_probing(x, y, z, {"one": w["one"]})
    with pytest.raises(BadData, match="some images must have it and some not"):
        sparse_probing(x, {"a": np.ones(120, bool)}, z, {"a": w["one"]})
    with pytest.raises(BadData, match="too few for any k"):
        sparse_probing(np.ones((120, 3)), y, np.ones((120, 3)), w)
    with pytest.raises(NotFinite, match="test holds NaN"):
        sparse_probing(x, y, z * np.nan, w)
    with pytest.raises(ShapeMismatch, match=r"'one' is bool \[image\]"):
        sparse_probing(x, {"one": y["one"][:5]}, z, {"one": w["one"]})
    with pytest.raises(BadData, match="no probe on chosen with k=3"):
        sparse_probing(x, y, z, w, ks=(1,)).accuracy("chosen", 3)


# -- absorption ------------------------------------------------------------------------------------------------------


def absorbing(n=1200, absorbed=0.7, seed=0, cosine=0.7):
    """Parent 'red' (latent 0) with three shapes (latents 1 to 3); latent 1 takes red up on that share of the first."""
    generator = np.random.default_rng(seed)
    red, shape = generator.random(n) < 0.5, generator.integers(0, 3, n)
    codes = 0.05 * generator.random((n, 8))
    taken = red & (shape == 0) & (generator.random(n) < absorbed)
    codes[:, 0] += red & ~taken
    for child in range(3):
        codes[:, 1 + child] += red & (shape == child)
    directions = np.eye(8)
    directions[1, 0] = cosine / np.sqrt(1 - cosine**2) if cosine else 0
    parent = Parent(name="red", positive=red, children={str(c): red & (shape == c) for c in range(3)})
    return codes, parent, directions, taken


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_planted_absorption_is_measured(share):
    codes, parent, directions, _ = absorbing(absorbed=share)
    other, judged, _, taken = absorbing(absorbed=share, seed=1)
    found = absorption(codes, [parent], other, [judged], directions)
    row = found.table.row(0, named=True)
    assert row["latent"] == 0 and row["counted"] and row["precision"] > 0.95
    assert row["absorbed"] == pytest.approx(taken[judged.positive].mean(), abs=1e-9)
    assert found.mean[0] == pytest.approx(row["absorbed"]) and row["other_child"] == 0
    children = {r["child"]: r for r in found.tables["children"].iter_rows(named=True)}
    assert children["0"]["child_latent"] == 1 and children["0"]["absorbed"] == pytest.approx(share, abs=0.08)
    assert children["1"]["absorbed"] == 0


def test_a_child_that_writes_elsewhere_absorbs_nothing():
    """The control: the same silence, but the child's latent does not write the parent's direction."""
    codes, parent, directions, taken = absorbing(cosine=0)
    found = absorption(codes, [parent], codes, [parent], directions)
    assert taken.any() and found.mean[0] == 0 and found.table["silent"][0] > 0.1


def test_latents_that_fire_anyhow_show_in_the_control():
    codes, parent, directions, _ = absorbing()
    generator = np.random.default_rng(5)
    codes[:, 1:] = generator.random((len(codes), 7))
    directions[1:, 0] = 1
    found = absorption(codes, [parent], codes, [parent], directions)
    row = found.table.row(0, named=True)
    assert row["absorbed"] == pytest.approx(row["other_child"], abs=0.05) and row["other_child"] > 0.02


def test_a_parent_without_a_latent_is_not_counted(tmp_path):
    codes, parent, directions, _ = absorbing()
    codes[:, 0] = 0
    codes[:, 1:] = np.random.default_rng(3).random((len(codes), 7))
    found = absorption(codes[:600], [_half(parent, 0)], codes[600:], [_half(parent, 1)], directions)
    assert not found.table["counted"][0] and np.isnan(found.mean[0]) and "0 of 1 concepts" in found.caveats[0]
    assert Absorption.load(found.save(tmp_path / "a")).table.equals(found.table)


def _half(parent, which):
    at = slice(0, 600) if which == 0 else slice(600, None)
    return Parent(
        name=parent.name, positive=parent.positive[at], children={k: v[at] for k, v in parent.children.items()}
    )


def test_the_hierarchy_of_scenes():
    first, second = (scene_hierarchy(mechvis.data.scenes(n, seed=4)) for n in (600, 40))
    names = [p.name for p in first]
    assert len(names) == 18 and {"round shape", "warm colour", "star", "cyan"} <= set(names)
    for p in first:
        assert (sum(c.astype(int) for c in p.children.values()) == p.positive).all(), p.name
    one, other = shared(first, second)
    assert [(p.name, tuple(p.children)) for p in one] == [(p.name, tuple(p.children)) for p in other]
    assert len(one) <= 18 and one[0].positive.shape == (600,) and other[0].positive.shape == (40,)


def test_absorption_refuses_bad_input():
    codes, parent, directions, _ = absorbing(n=60)
    with pytest.raises(BadData, match="the same parents and children"):
        absorption(codes, [], codes, [], directions)
    with pytest.raises(ShapeMismatch, match="of the same latents"):
        absorption(codes, [parent], codes, [parent], directions[:3])
    with pytest.raises(BadData, match="two or more are needed"):
        Parent(name="x", positive=np.ones(3, bool), children={"a": np.ones(3, bool)})
    with pytest.raises(BadData, match="1 images show 'a' and not 'x'"):
        Parent(name="x", positive=np.array([True, False]), children=dict.fromkeys("ab", np.array([True, True])))
    with pytest.raises(BadData, match="are no scenes"):
        import dataclasses

        scene_hierarchy(dataclasses.replace(mechvis.data.scenes(4), class_names=("a",) * 8))


# -- F17 AttributeSum ------------------------------------------------------------------------------------------------

SIZES, LENGTHS = {"a": 4, "b": 3, "c": 2}, {"a": 3.0, "b": 2.0, "c": 1.0}


@pytest.fixture(scope="module")
def f17():
    """Attributes with 4/3/2 values and lengths 3/2/1 in random directions of R^32, noise .1 (methods2.md 21.1)."""
    generator = np.random.default_rng(0)
    vectors = {}
    for name, size in SIZES.items():
        u = generator.normal(size=(size, 32))
        vectors[name] = LENGTHS[name] * u / np.linalg.norm(u, axis=1, keepdims=True)
    values = {name: generator.integers(0, size, 4000) for name, size in SIZES.items()}
    noise = 0.1 * generator.normal(size=(4000, 32))

    def rows(v):
        return sum(vectors[name][v[name]] for name in vectors) + noise

    return vectors, values, rows


def of_values(vectors, names="abc", split=1, seed=0):
    """A dictionary with one latent per value of some attributes, or several that each take a part of the rows."""
    directions = np.concatenate([np.repeat(vectors[name], split, axis=0) for name in names])
    if split > 1:  # a little apart, so that the nearest takes all
        drawn = np.random.default_rng(seed).normal(size=directions.shape)
        directions = directions / np.linalg.norm(directions, axis=1, keepdims=True) + 0.09 * drawn
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    tensors = {"W_enc": unit, "W_dec": unit, "b_enc": np.zeros(len(unit)), "b_dec": np.zeros(32)}
    ends = sae.ends.Ends(reads={"site": 32})
    return made(NonNegative(n_latents=len(unit), steps=400), ends, torch.float64, tensors)


def read_out(f17):
    """The nearest value of each attribute, by least squares on known rows."""
    _, values, rows = f17
    found = supervised(rows(values)[:2000], {k: v[:2000] for k, v in values.items()})
    stacked = np.concatenate([found.vectors[name] for name in SIZES])
    inverse = np.linalg.pinv(stacked)

    def read(x):
        weight = (x.numpy(force=True) - found.mean) @ inverse
        at = np.cumsum([0, *SIZES.values()])
        return {name: weight[:, a:b].argmax(1) for name, a, b in zip(SIZES, at[:-1], at[1:], strict=True)}

    return read, found


def test_f17_supervised_explains_and_edits(f17):
    _, values, rows = f17
    read, ceiling = read_out(f17)
    x, held = rows(values)[2000:], {k: v[2000:] for k, v in values.items()}
    r2 = 1 - np.square(x - ceiling.reconstruct(held)).sum() / np.square(x - x.mean(0)).sum()
    assert r2 == pytest.approx(0.967, abs=0.012)
    for name in SIZES:
        after = (held[name] + 1) % SIZES[name]
        seen = read(torch.from_numpy(ceiling.edit(x, name, held[name], after)))
        assert (seen[name] == after).mean() >= 0.999
        for other in set(SIZES) - {name}:
            assert (seen[other] == held[other]).mean() >= 0.999


def pairs(f17, name):
    _, values, rows = f17
    after = {**values, name: (values[name] + 1) % SIZES[name]}
    h, h_new = (torch.from_numpy(rows(v)[2000:2400]) for v in (values, after))
    return h, h_new, values[name][2000:2400], after[name][2000:2400]


def scored(f17, d, name):
    _, values, rows = f17
    codes = d.encode(torch.from_numpy(rows(values)[:2000])).numpy(force=True)
    ordered = Sorted(codes)
    return {v: ordered.detectors(values[name][:2000] == v).f1 for v in range(SIZES[name])}


@pytest.mark.parametrize("name", list(SIZES))
def test_f17_two_latents_of_the_true_dictionary_are_the_edit(f17, name):
    vectors, *_ = f17
    d = of_values(vectors)
    read, ceiling = read_out(f17)
    h, h_new, before, after = pairs(f17, name)
    found = control(d, h, h_new, name, before, after, read, f1=scored(f17, d, name), ceiling=ceiling, ks=(1, 2, 4))
    assert found.success(name, "supervised")[0] >= 0.999
    assert found.success(name, "greedy", 2)[0] > 0.98 and found.success(name, "f1", 2)[0] > 0.98
    assert found.success(name, "nothing")[0] < 0.02
    assert found.success(name, "random", 2)[0] < 0.8
    rows = {(r["way"], r["k"]): r for r in found.table.iter_rows(named=True)}
    assert rows["greedy", 2]["kept"] > 0.98 and rows["supervised", None]["kept"] > 0.999
    assert 0 < rows["greedy", 2]["magnitude"] < 1 == pytest.approx(rows["everything", None]["magnitude"])
    assert rows["greedy", 2]["distance"] < 0.1 < rows["random", 2]["distance"]
    assert rows["greedy", 4]["distance"] <= rows["greedy", 2]["distance"] <= rows["greedy", 1]["distance"]


def test_f17_a_random_dictionary_does_not_control(f17, tmp_path):
    """The control that must fail."""
    _, values, rows = f17
    d = baselines.random_dictionary(torch.from_numpy(rows(values)[:2000]), 9, k=4)
    read, _ = read_out(f17)
    h, h_new, before, after = pairs(f17, "c")
    found = control(d, h, h_new, "c", before, after, read, ks=(2,))
    assert found.success("c", "greedy", 2)[0] < 0.8
    assert Control.load(found.save(tmp_path / "c")).table.equals(found.table)


def split_halves(f17):
    """Each value in four: latents that fire on a quarter of the rows of their value each."""
    _, values, _ = f17
    columns = []
    for name, size in SIZES.items():
        for v in range(size):
            has = values[name] == v
            columns += [has & (np.cumsum(has) % 4 == q) for q in range(4)]
    return np.stack(columns, 1).astype(float)


def judged(f17, codes):
    _, values, rows = f17
    train, test = ({k: v[at] for k, v in values.items()} for at in (slice(0, 2000), slice(2000, None)))
    x = rows(values)
    return attribute_latents(codes[:2000], train, codes[2000:], test, rows=(x[:2000], x[2000:]))


def test_f17_the_true_dictionary_has_all_values(f17):
    vectors, values, rows = f17
    codes = of_values(vectors).encode(torch.from_numpy(rows(values))).numpy(force=True)
    found = judged(f17, codes)
    assert found.found == 1 and found.facts["occluded"] == 0 and found.facts["split"] == 0


def test_f17_a_missing_attribute_shows_as_occlusion(f17):
    vectors, values, rows = f17
    codes = of_values(vectors, "ab").encode(torch.from_numpy(rows(values))).numpy(force=True)
    table = judged(f17, codes).table
    by = {(r["attribute"], r["value"]): r for r in table.iter_rows(named=True)}
    assert by["c", "0"]["occluded"] and by["c", "1"]["occluded"] and by["c", "0"]["probe"] > 0.95
    assert not any(r["occluded"] or r["split"] for key, r in by.items() if key[0] != "c")


def test_f17_values_in_four_show_as_over_splitting(f17):
    found = judged(f17, split_halves(f17))
    assert found.facts["split"] == 1 and found.facts["occluded"] == 0 and found.found == 0
    assert (found.table["parts"] == 4).all() and (found.table["union"] > 0.99).all()


def test_without_rows_occlusion_is_not_told(f17):
    vectors, values, rows = f17
    codes = of_values(vectors, "ab").encode(torch.from_numpy(rows(values))).numpy(force=True)
    train, test = ({k: v[at] for k, v in values.items()} for at in (slice(0, 2000), slice(2000, None)))
    found = attribute_latents(codes[:2000], train, codes[2000:], test)
    assert not found.table["occluded"].any() and "occlusion is not told" in found.caveats[1]
    with pytest.raises(BadData, match="the same attributes"):
        attribute_latents(codes[:2000], train, codes[2000:], {"a": test["a"]})
    with pytest.raises(ShapeMismatch, match="of the same latents"):
        attribute_latents(codes[:2000], train, codes[2000:, :3], test)


def test_labelled_latents_explain_their_share(f17):
    vectors, values, rows = f17
    d, x = of_values(vectors), torch.from_numpy(rows(values)[:100])
    assert weights(d, x).sum(1) == pytest.approx(1)
    whole = explained_share(d, x, np.ones(9, bool))
    some = explained_share(d, x, np.arange(9) < 4)
    assert whole == pytest.approx(1) and 0.4 < some < 0.95
    with pytest.raises(ShapeMismatch, match="labels of 3 latents"):
        explained_share(d, x, np.ones(3, bool))


# -- control, the parts ----------------------------------------------------------------------------------------------


def test_greedy_takes_the_best_first():
    directions = torch.eye(4, dtype=torch.float64)
    change = torch.tensor([[[1.0, 3.0, 0.0, -2.0]]], dtype=torch.float64)
    target = change @ directions
    assert exchange(change, target, directions, 1, "greedy").tolist() == [[False, True, False, False]]
    assert exchange(change, target, directions, 2, "greedy").tolist() == [[False, True, False, True]]
    assert exchange(change, target, directions, 4, "greedy").tolist() == [[True, True, False, True]]
    # One that would move the wrong way is never taken.
    assert not exchange(change, -target, directions, 4, "greedy").any()
    drawn = exchange(change, target, directions, 2, "random", generator=torch.Generator().manual_seed(0))
    assert drawn.sum() == 2 and not drawn[0, 2]


def test_greedy_is_trying_every_latent_at_every_step():
    """The plain twin."""
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(3, 5, 9, generator=generator, dtype=torch.float64)
    change = change * (torch.rand(3, 5, 9, generator=generator) < 0.4)
    directions = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64) + change @ directions
    fast = exchanges(change, target, directions, (1, 3, 9), "greedy")

    def left(image, latents):
        return float((target[image] - change[image][:, latents] @ directions[latents]).square().sum())

    for image in range(3):
        chosen: list[int] = []
        for step in range(9):
            best = min((left(image, [*chosen, i]), i) for i in range(9) if i not in chosen)
            if best[0] >= left(image, chosen):
                break
            chosen.append(best[1])
            if step + 1 in fast:
                assert set(fast[step + 1][image].nonzero()[:, 0].tolist()) == set(chosen)
        assert set(fast[9][image].nonzero()[:, 0].tolist()) == set(chosen)


def test_greedy_looks_at_all_tokens_of_an_image():
    directions = torch.eye(2, dtype=torch.float64)
    change = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]], dtype=torch.float64)
    assert exchange(change, change @ directions, directions, 1, "greedy").tolist() == [[False, True]]


@pytest.mark.parametrize("normalise", ["none", "mean_square", "token_norm", "layer_norm"])
def test_strengths_are_what_latents_write(normalise):
    rows = torch.randn(60, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 10, 60)[:, None]
    d = sae.start(sae.TopK(n_latents=32, k=4, normalise=normalise), {"site": rows})
    nothing = d.decode(torch.zeros(60, 32), like=rows)
    written = (strengths(d, rows) @ d.directions.double()).float() + nothing
    torch.testing.assert_close(written.detach(), d(rows).detach(), atol=1e-4, rtol=1e-4)


def test_control_refuses_bad_input(f17):
    vectors, *_ = f17
    d = of_values(vectors)
    read, ceiling = read_out(f17)
    h, h_new, before, after = pairs(f17, "c")
    with pytest.raises(ShapeMismatch, match="belong together"):
        control(d, h, h_new[:5], "c", before, after, read)
    with pytest.raises(BadData, match="names a, b, c, not 'd'"):
        control(d, h, h_new, "d", before, after, read)
    with pytest.raises(UnknownName, match="value"):
        control(d, h, h_new, "c", before, after, read, f1={7: np.ones(9)})
    change = torch.ones(1, 1, 2)
    with pytest.raises(UnknownName, match="way to choose latents"):
        exchange(change, torch.ones(1, 1, 2), torch.eye(2), 1, "best")
    with pytest.raises(BadData, match="k=0"):
        exchange(change, torch.ones(1, 1, 2), torch.eye(2), 0, "greedy")
    with pytest.raises(BadData, match="needs rank="):
        exchange(change, torch.ones(1, 1, 2), torch.eye(2), 1, "f1")
    with pytest.raises(UnknownName, match="attribute"):
        ceiling.edit(h.numpy(), "z", before, after)
    with pytest.raises(UnknownName, match="value of c"):
        ceiling.edit(h.numpy(), "c", before, after + 9)
    with pytest.raises(BadData, match="one value only"):
        supervised(np.ones((3, 2)), {"a": np.zeros(3)})
    with pytest.raises(ShapeMismatch, match=r"\[2\] values for 3 rows"):
        supervised(np.ones((3, 2)), {"a": np.zeros(2)})
    with pytest.raises(NotFinite, match="rows hold NaN"):
        supervised(np.full((3, 2), np.nan), {"a": np.arange(3)})
    several = baselines.pca({"a": h, "b": h})
    with pytest.raises(BadData, match="this is a crosscoder"):
        control(several, h, h_new, "c", before, after, read)


def test_control_in_the_model_reaches_the_reference():
    """All latents of the identity exchanged are the counterfactual activation itself."""
    model = mechvis.load("scenes-vit")
    made_pairs = mechvis.data.scene_pairs(16, seed=811, change="background", group="consistent")
    site = "blocks.2.hook_resid_post"
    d = baselines.identity({site: torch.zeros(2, 128)})
    found = control_in_model(d, model, made_pairs, ks=(1, 8), batch_size=8)
    rows = {(r["attribute"], r["way"], r["k"]): r for r in found.table.iter_rows(named=True)}
    moves = next(name for name in found.table["attribute"] if "moves" in name)
    assert rows[moves, "everything", None]["success"] == 1 and rows[moves, "everything", None]["recovered"] > 0.999
    assert rows[moves, "everything", None]["distance"] < 1e-9 and rows[moves, "everything", None]["magnitude"] == 1
    assert rows[moves, "nothing", 0]["success"] == 0 and rows[moves, "nothing", 0]["recovered"] == 0
    assert rows[moves, "greedy", 8]["distance"] < rows[moves, "random", 8]["distance"]
    assert sum(r["n"] for key, r in rows.items() if key[1] == "nothing") == 16
    with pytest.raises(ShapeMismatch, match="width 5"):
        control_in_model(baselines.identity({site: torch.zeros(2, 5)}), model, made_pairs)
