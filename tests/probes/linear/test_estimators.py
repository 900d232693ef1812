"""Linear probes against scikit-learn on the same loss, in memory and streaming, and with scikit-learn's own tools."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from probes.linear import ClassProbe, LabelsProbe, NumbersProbe, probe_for
from probes.linear.base import NotFitted
from probes.linear.batches import Rows, matrix_source
from probes.linear.losses import loss_and_slope

N, D, CLASSES = 300, 12, 5


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, N)
    x = 0.7 * rng.normal(size=(CLASSES, D))[y] + rng.normal(size=(N, D))
    return x * rng.uniform(0.1, 5, D) + 3 * rng.normal(size=D), y


def standard(x):
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("classes", [2, CLASSES])
@pytest.mark.parametrize("solver", ["scikit-learn", "lbfgs"])
def test_classes_equal_scikit_learn_at_the_same_penalty(data, classes, solver):
    x, y = data[0], np.minimum(data[1], classes - 1)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(standard(x), y)
    ours = ClassProbe(solver=solver, tolerance=1e-9).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(standard(x)), atol=1e-5)
    np.testing.assert_allclose(ours.coef_, theirs.coef_ / x.std(0), atol=1e-4)
    np.testing.assert_allclose(x @ ours.coef_.T + ours.intercept_, ours.decision_function(x), atol=1e-8)
    assert ours.converged_


@pytest.mark.parametrize("solver", ["scikit-learn", "lbfgs"])
def test_numbers_equal_ridge(data, solver):
    x, y = data[0], np.random.default_rng(1).normal(size=(N, 2)) + data[0][:, :2]
    theirs = Ridge(alpha=1.0).fit(standard(x), y)
    ours = NumbersProbe(solver=solver, tolerance=1e-9).fit(x, y)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(standard(x)), atol=1e-5)
    assert ours.score(x, y) == pytest.approx(theirs.score(standard(x), y), abs=1e-6)
    assert NumbersProbe().fit(x, y[:, 0]).predict(x).shape == (N,)


@pytest.mark.parametrize("solver", ["scikit-learn", "lbfgs"])
def test_labels_are_one_logistic_regression_each(data, solver):
    x, y = data[0], (data[1][:, None] == np.arange(3)).astype(int)
    ours = LabelsProbe(solver=solver, tolerance=1e-9).fit(x, y)
    for label in range(3):
        theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(standard(x), y[:, label])
        np.testing.assert_allclose(ours.predict_proba(x)[:, label], theirs.predict_proba(standard(x))[:, 1], atol=1e-5)
    assert ours.score(x, y) == pytest.approx((ours.predict(x) == y).mean())


@pytest.mark.parametrize("settings", [{"solver": "adam", "batch_size": 64}, {"solver": "sgd", "batch_size": 128}])
def test_mini_batches_come_close(data, settings):
    exact = ClassProbe(weight_decay=1e-2).fit(*data)
    close = ClassProbe(weight_decay=1e-2, validation_share=0, patience=100, **settings).fit(*data)
    assert (exact.predict(data[0]) == close.predict(data[0])).mean() > 0.97
    assert close.loss_ < exact.loss_ * 1.1


def test_streams_agree_with_memory(data, tmp_path):
    x, y = data
    np.save(tmp_path / "x.npy", x)
    disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    settings = {"tolerance": 1e-9, "batch_size": 64}
    memory = ClassProbe(**settings).fit(x, y)
    on_disk = ClassProbe(**settings).fit(disk, y)
    assert (memory.solver_, on_disk.solver_) == ("scikit-learn", "lbfgs"), "a matrix on disk is never copied"
    batches = [(x[start : start + 50], y[start : start + 50]) for start in range(0, N, 50)]
    for other in (
        on_disk,
        ClassProbe(**settings).fit_batches(batches),
        ClassProbe(**settings).fit(Rows(x, np.arange(N)), y),
    ):
        np.testing.assert_allclose(other.predict_proba(disk), memory.predict_proba(x), atol=1e-5)


class Watched(np.memmap):
    """A matrix on disk that notes the most rows that were ever fetched at once."""

    most = 0

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if getattr(found, "ndim", 0) == 2:
            Watched.most = max(Watched.most, len(found))
        return np.asarray(found)


@pytest.mark.parametrize("solver", ["lbfgs", "adam", "sgd"])
def test_what_lies_on_disk_is_never_read_as_a_whole(data, tmp_path, solver):
    np.save(tmp_path / "x.npy", data[0])
    disk = np.load(tmp_path / "x.npy", mmap_mode="r").view(Watched)
    Watched.most = 0
    probe = ClassProbe(solver=solver, batch_size=40, epochs=3, weight_decay=1e-2).fit(Rows(disk, np.arange(N)), data[1])
    assert 0 < Watched.most <= 40
    Watched.most = 0
    again = ClassProbe(solver=solver, batch_size=40, epochs=3, weight_decay=1e-2).fit(disk, data[1])
    assert 0 < Watched.most <= 40
    np.testing.assert_allclose(again.coef_, probe.coef_, atol=1e-12)


def test_early_stopping_watches_rows_it_does_not_train_on():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 50)), rng.integers(0, 2, 200)
    settings = {"solver": "adam", "weight_decay": 0.0, "epochs": 200, "patience": 5}
    stopped = ClassProbe(**settings).fit(x, y)
    assert stopped.n_iter_ < 60, "noise cannot be learnt, so validation gets worse at once"
    assert stopped.score(x, y) < ClassProbe(**{**settings, "validation_share": 0}).fit(x, y).score(x, y)


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_slopes_are_those_of_autograd(kind):
    generator = torch.Generator().manual_seed(0)
    for columns in (1, 4):
        scores = torch.randn(6, columns, dtype=torch.float64, generator=generator, requires_grad=True)
        target = torch.randint(0, 2, (6, columns), generator=generator).double()
        if kind == "classes":
            target = torch.randint(0, max(2, columns), (6,), generator=generator)
        loss, slope = loss_and_slope(kind, scores, target)
        torch.testing.assert_close(torch.autograd.grad(loss, scores)[0], slope.detach())


def test_ranks(data):
    full = ClassProbe(tolerance=1e-9).fit(*data)
    same = ClassProbe(tolerance=1e-9, rank=CLASSES - 1).fit(*data)
    np.testing.assert_allclose(same.predict_proba(data[0]), full.predict_proba(data[0]), atol=1e-4)
    assert len(full.row_space(share=1e-4)) == CLASSES - 1
    one = ClassProbe(rank=1).fit(*data)
    assert np.linalg.matrix_rank(one.coef_, tol=1e-8) == 1 and one.score(*data) < full.score(*data)
    basis = full.row_space()
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-10)


def test_scikit_learn_tools_accept_it(data):
    probe = ClassProbe(weight_decay=1e-2, rank=3)
    assert clone(probe).get_params() == probe.get_params()
    assert cross_val_score(probe, *data, cv=3).mean() > 0.5
    search = GridSearchCV(ClassProbe(), {"weight_decay": [1e-3, 10.0]}, cv=3).fit(*data)
    assert search.best_params_ == {"weight_decay": 1e-3}


def test_names_are_classes_and_constant_columns_are_quiet(data):
    x, names = np.column_stack([data[0], np.full(N, 1e6)]), np.array(["a", "b", "c", "d", "e"])[data[1]]
    probe = ClassProbe().fit(x, names)
    assert probe.predict(x).dtype == names.dtype and list(probe.classes_) == ["a", "b", "c", "d", "e"]
    assert np.isfinite(probe.predict_proba(x)).all() and abs(probe.coef_[:, -1]).max() < 1e-6


def test_statistics_of_a_stream_are_those_of_the_whole(data):
    source = matrix_source(data[0], data[1], batch_size=7)
    np.testing.assert_allclose(source.mean, data[0].mean(0))
    np.testing.assert_allclose(source.scale, data[0].std(0))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": np.full((N, D), np.nan)}, NotFinite, "first in row 0"),
        ({"x": np.zeros(N)}, ShapeMismatch, r"a matrix \[row d\]"),
        ({"y": np.zeros(N, int)}, BadData, "nothing to tell apart"),
        ({"y": np.zeros((N, 2), int)}, ShapeMismatch, "classes are one per row"),
        ({"y": np.linspace(0, 1, N)}, BadData, "use NumbersProbe"),
        ({"solver": "newton"}, UnknownName, "solver"),
        ({"rank": 0}, OutOfRange, "ranks are 1 to 12"),
        ({"weight_decay": -1.0, "solver": "lbfgs"}, OutOfRange, "0 or more"),
        ({"weight_decay": 0.0, "solver": "scikit-learn"}, OutOfRange, "takes 0"),
        ({"solver": "sgd", "step": 1e9, "batch_size": 8}, BadData, "take a step below"),
    ],
)
def test_bad_fits(data, change, error, text):
    settings = {key: value for key, value in change.items() if key not in "xy"}
    with pytest.raises(error, match=text), np.errstate(all="ignore"):
        ClassProbe(**settings).fit(change.get("x", data[0]), change.get("y", data[1]))


def test_other_bad_input(data):
    x, y = data
    with pytest.raises(NotFitted, match=r"call fit\(X, y\) first"):
        ClassProbe().predict(x)
    with pytest.raises(ShapeMismatch, match="fitted to 12 columns"):
        ClassProbe().fit(x, y).predict(x[:, :3])
    with pytest.raises(BadData, match="read only once"):
        ClassProbe().fit_batches(batch for batch in [(x, y)])
    with pytest.raises(UnknownName, match="streaming solver"):
        ClassProbe(solver="scikit-learn").fit_batches([(x, y)])
    with pytest.raises(UnknownName, match="class"):
        ClassProbe().fit_batches([(x, y)], classes=[0, 1])
    with pytest.raises(BadData, match="0 or 1"):
        LabelsProbe().fit(x, np.stack([y, y], 1))
    with pytest.raises(BadData, match="finite numbers"):
        NumbersProbe().fit(x, np.full(N, np.nan))
    with pytest.raises(UnknownName, match="kind of probe"):
        probe_for("sounds")
