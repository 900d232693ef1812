"""SpLiCE: one objective for both solvers, the modality gap (methods.md 2.5), interventions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import mechvis
from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES
from mechvis.errors import BadData, MechvisWarning, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing.planted_codes import planted_dict
from probes.codes import SpliceCodes, WordList, splice, without_words
from probes.codes.lasso import admm, coordinate_descent, kkt, objective, working_set
from probes.codes.splice import recomposed
from probes.codes.words import unit

L1 = 0.25


@pytest.fixture(scope="module")
def planted():
    return planted_dict(64, gap=3.0)


@pytest.fixture(scope="module")
def words(planted):
    return WordList.of_matrix([f"word {i}" for i in range(400)], planted.texts)


def drawn(n=12, words=40, width=16):
    generator = np.random.default_rng(0)
    return unit(generator.normal(size=(n, width))), unit(generator.normal(size=(words, width)))


def test_all_solvers_minimise_the_same_objective():
    x, atoms = drawn()
    first = coordinate_descent(x, atoms, L1, tolerance=1e-12)
    second = admm(x, atoms, L1, tolerance=1e-10, iterations=20_000)
    np.testing.assert_allclose(first, second, atol=1e-6)
    for step in (1, 4, 64):
        np.testing.assert_allclose(working_set(x, atoms, L1, step=step), first, atol=1e-6)
    np.testing.assert_allclose(objective(x, atoms, first, L1), objective(x, atoms, second, L1), atol=1e-9)
    for row in range(3):
        bounded = minimize(
            lambda w, row=row: objective(x[row : row + 1], atoms, w[None], L1)[0],
            np.full(40, 0.01),
            bounds=[(0, None)] * 40,
            method="L-BFGS-B",
            options={"maxiter": 5000, "maxfun": 500_000, "ftol": 1e-14, "gtol": 1e-9},
        )
        assert objective(x, atoms, first, L1)[row] == pytest.approx(bounded.fun, abs=1e-6), "an independent minimiser"


def test_optimum_by_its_conditions():
    x, atoms = drawn()
    codes = coordinate_descent(x, atoms, L1, tolerance=1e-13)
    slope = (x - codes @ atoms) @ atoms.T
    assert (slope <= L1 / 2 + 1e-5).all()
    np.testing.assert_allclose(slope[codes > 0], L1 / 2, atol=1e-5)
    assert kkt(x, atoms, codes, L1).max() < 1e-5
    assert kkt(x, atoms, codes * 1.1, L1).min() > 1e-3, "the control"
    wrong_factor = coordinate_descent(x, atoms, 2 * L1, tolerance=1e-13)
    assert kkt(x, atoms, wrong_factor, L1).min() > 0.05, "a factor of two in the price shows"


def test_woodbury_is_the_direct_form():
    x, atoms = drawn()
    np.testing.assert_allclose(admm(x, atoms, L1), admm(x, atoms, L1, woodbury=False), atol=1e-9)


@given(st.integers(0, 10_000), st.floats(0.02, 1.5))
def test_working_set_is_optimal_also_with_dependent_words(seed, l1):
    generator = np.random.default_rng(seed)
    x, atoms = unit(generator.normal(size=(3, 6))), unit(generator.normal(size=(30, 6)))
    atoms[20:] = unit(atoms[:10] + atoms[10:20])
    codes = working_set(x, atoms, l1)
    assert kkt(x, atoms, codes, l1).max() < 1e-6
    reference = coordinate_descent(x, atoms, l1, tolerance=1e-12, iterations=200_000)
    np.testing.assert_allclose(objective(x, atoms, codes, l1), objective(x, atoms, reference, l1), atol=1e-6)


def found(planted, words, **settings):
    codes = splice(planted.vectors, words, mean=planted.others, l1=L1, **settings)
    dense = codes.dense()
    best = np.argsort(-dense, axis=1)[:, :4]
    hits = [((dense[i, top] > 0) & (planted.codes[i, top] > 0)).sum() / 4 for i, top in enumerate(best)]
    return codes, np.mean(hits)


@pytest.mark.parametrize("solver", ["coordinate_descent", "admm", "working_set"])
def test_across_the_gap_with_both_means_taken_off(planted, words, solver):
    codes, precision = found(planted, words, solver=solver)
    assert precision == 1.0
    assert codes.facts["l0"]["mean"] == 4.0
    assert codes.tables["images"]["kkt"].max() < 1e-4
    assert codes.facts["empty codes"] == 0


@pytest.mark.parametrize(("centre_words", "centre_images"), [(False, False), (True, False), (False, True)])
def test_without_a_mean_it_fails(planted, words, centre_words, centre_images):
    codes, precision = found(planted, words, centre_words=centre_words, centre_images=centre_images)
    assert precision < 0.8 or codes.facts["l0"]["mean"] > 6
    assert any("modality gap" in line for line in codes.caveats)


def test_without_both_means_codes_are_empty():
    """Planted means that are orthogonal, so that no scalar product of theirs helps or hurts."""
    planted = planted_dict(64, gap=3.0)
    shift = planted.texts.mean(0)
    images = unit(planted.vectors - shift * (planted.vectors @ shift)[:, None] / (shift @ shift))
    words = WordList.of_matrix([f"word {i}" for i in range(400)], planted.texts)
    codes = splice(images, words, l1=L1, centre_words=False, centre_images=False)
    assert codes.facts["empty codes"] == 64 and codes.table.is_empty() and codes.of(0) == []
    assert any("64 of 64 codes are empty" in line for line in codes.caveats)


def test_recomposing(planted, words):
    codes, _ = found(planted, words)
    back = codes.recompose()
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1)
    cosine = (back * unit(planted.vectors)).sum(1)
    np.testing.assert_allclose(codes.tables["images"]["cosine"].to_numpy(), cosine)
    kept = (codes.recompose(keep_length=True) * unit(planted.vectors)).sum(1)
    np.testing.assert_allclose(codes.tables["images"]["cosine_kept"].to_numpy(), kept)
    assert kept.min() > 0.98 and cosine.mean() < 0.92, "the published form makes the word part too long across the gap"
    word = codes.of(0)[0][0]
    dense = codes.dense()
    dense[:, codes.names.index(word)] = 0
    np.testing.assert_allclose(codes.recompose([word]), recomposed(dense, codes.arrays["words"], codes.arrays["mean"]))
    with pytest.raises(UnknownName, match="unknown word 'elephant'"):
        codes.recompose(["elephant"])


def test_batches_and_files_change_nothing(planted, words, tmp_path):
    codes, _ = found(planted, words)
    again = splice(planted.vectors, words, mean=planted.others, l1=L1, batch_size=7)
    np.testing.assert_allclose(again.dense(), codes.dense(), atol=1e-6)
    shown = [label.get_text() for label in codes.plot(5).axes[0].get_yticklabels()]
    assert shown == codes.table["word"].head(5).to_list()
    loaded = SpliceCodes.load(codes.save(tmp_path / "codes"))
    np.testing.assert_array_equal(loaded.dense(), codes.dense())
    assert loaded.of(3) == codes.of(3)
    assert "modality" not in " ".join(codes.caveats) and "not a cause" in codes.report(tmp_path / "a.html").read_text()


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


def test_on_the_bundled_clip_words_are_the_factors(clip):
    """Measured: the three heaviest words are shape, colour and background; backgrounds out, shapes stay."""
    images, others = mechvis.data.scenes(n=64, seed=7), mechvis.data.scenes(n=128, seed=11)
    z, reference = (clip.encode_image(some).detach().cpu().numpy() for some in (images, others))
    words = WordList.of_texts(clip, [*SHAPES, *COLOURS, *BACKGROUNDS])
    codes = splice(z, words, mean=reference, l1=0.25)
    hits = 0
    for i in range(64):
        true = {SHAPES[images.labels[i]], images.columns["colour"][i], images.columns["background"][i]}
        hits += len({word for word, _ in codes.of(i)[:3]} & true)
    assert hits / (3 * 64) > 0.98
    assert codes.facts["l0"]["mean"] < 4 and codes.facts["cosine"]["low"] > 0.9
    shapes = clip.prompts(list(SHAPES), ("a photo of a {}",)).detach().cpu().numpy()
    rows = {}
    for name, gone in (("backgrounds", BACKGROUNDS), ("shapes", SHAPES)):
        rows[name] = without_words(codes, z, shapes, images.labels, list(gone), controls=4)
    assert abs(rows["backgrounds"].pick(embedding="without")["lost"]) < 0.03
    assert rows["backgrounds"].pick(embedding="control")["lost"] > 0.2
    assert rows["shapes"].pick(embedding="without")["lost_low"] > 0.7
    assert abs(rows["shapes"].pick(embedding="control")["lost"]) < 0.03
    assert rows["shapes"].arrays["predictions"].shape == (4, 64)


def test_refusals(planted, words):
    z = planted.vectors
    with pytest.raises(UnknownName, match="solver 'lars'"):
        splice(z, words, solver="lars")
    with pytest.raises(ShapeMismatch, match="as wide as the words"):
        splice(z[:, :5], words)
    with pytest.raises(NotFinite, match="embeddings holds 1 NaN"):
        splice(np.where(np.arange(z.size).reshape(z.shape) == 3, np.nan, z), words)
    with pytest.raises(OutOfRange, match=r"l1=0: give more than 0"):
        splice(z, words, l1=0)
    with pytest.raises(BadData, match="one image alone is its own mean"):
        splice(z[:1], words)
    with pytest.raises(ShapeMismatch, match="mean= should be"):
        splice(z, words, mean=np.zeros(3))
    with pytest.raises(ShapeMismatch, match="embedding 0 is zero"):
        splice(np.zeros((2, 256)), words)
    with pytest.raises(BadData, match="'a' is there twice"):
        WordList.of_matrix(["a", "a"], np.eye(2))
    with pytest.raises(BadData, match="one word alone"):
        WordList.of_matrix(["a"], np.eye(1)).centred()
    codes = splice(z, words, mean=planted.others)
    with pytest.raises(OutOfRange, match="image 64"):
        codes.of(64)
    with pytest.raises(BadData, match="at least one word"):
        without_words(codes, z, np.ones((2, 256)), np.zeros(64, int), [])
    with pytest.raises(ShapeMismatch, match="the codes are of 64 images in 256 dimensions"):
        without_words(codes, z[:3], np.ones((2, 256)), np.zeros(64, int), ["word 1"])


def test_a_solver_that_has_not_arrived_says_so():
    x, atoms = drawn()
    with pytest.warns(MechvisWarning, match="admm stopped after 2 iterations"):
        admm(x, atoms, L1, iterations=2)
    with pytest.warns(MechvisWarning, match="coordinate descent stopped after 1 sweeps"):
        coordinate_descent(x, atoms, 0.001, iterations=1, tolerance=1e-12)
    with pytest.raises(OutOfRange, match="rho=0"):
        admm(x, atoms, L1, rho=0)
    with pytest.raises(OutOfRange, match="step=0"):
        working_set(x, atoms, L1, step=0)
