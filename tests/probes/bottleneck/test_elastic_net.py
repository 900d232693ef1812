"""The sparse layer against scikit-learn's saga, its optimality conditions, and its path."""

import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from probes.bottleneck import elastic_net, elastic_net_path


def problem(n=300, k=8, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, k))
    weight = np.zeros((classes, k))
    weight[:, :classes] = 2 * np.eye(classes)
    y = (x @ weight.T + generator.gumbel(size=(n, classes))).argmax(1)
    return x, y, np.eye(classes)[y]


def objective(found, x, targets, alpha, teacher=None, w=0.0, tau=2.0):
    y = found.logits(x)
    loss = -(1 - w) * (targets * np.log(softmax(y, axis=1))).sum(1).mean()
    if teacher is not None:
        loss += w * (teacher * (np.log(teacher) - np.log(softmax(y / tau, axis=1)))).sum(1).mean()
    size = alpha * np.abs(found.weight).sum() + (1 - alpha) / 2 * (found.weight**2).sum()
    return loss + found.lam * size


@pytest.mark.parametrize(("lam", "alpha"), [(0.02, 0.99), (0.05, 0.5), (7e-4, 0.99)])
def test_equals_scikit_learns_saga(lam, alpha):
    x, y, targets = problem()
    ours = elastic_net(x, targets, lam=lam, alpha=alpha, steps=5000, tolerance=1e-9)
    assert ours.kkt <= 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = LogisticRegression(C=1 / (lam * len(x)), l1_ratio=alpha, solver="saga", tol=1e-10, max_iter=20000)
        theirs.fit(x, y)
    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(softmax(ours.logits(x), axis=1), theirs.predict_proba(x), atol=2e-5)
    assert ((ours.weight != 0) == (np.abs(theirs.coef_) > 1e-6)).all()


def test_no_small_step_improves_the_distilled_objective():
    x, _, targets = problem()
    teacher = softmax(x[:, :3] / 2, axis=1)
    more = {"teacher": teacher, "teacher_weight": 0.5, "tau": 2.0}
    found = elastic_net(x, targets, lam=0.02, **more, tolerance=1e-9, steps=5000)
    best = objective(found, x, targets, 0.99, teacher, 0.5)
    generator = np.random.default_rng(1)
    for _ in range(30):
        moved = type(found)(
            weight=found.weight + 1e-3 * generator.standard_normal(found.weight.shape),
            bias=found.bias,
            lam=found.lam,
            kkt=0.0,
            steps=0,
        )
        assert objective(moved, x, targets, 0.99, teacher, 0.5) > best
    alone = elastic_net(x, targets, lam=0.02)
    assert np.abs(alone.weight - found.weight).max() > 0.01, "the teacher must pull"


def test_path_starts_empty_and_grows():
    x, _, targets = problem()
    path = elastic_net_path(x, targets, n_lambdas=12, ratio=1e-3)
    sizes = [one.per_class for one in path]
    assert sizes[0] == 0 and sizes[-1] > 5
    assert all(one.kkt <= 1e-6 for one in path)
    lonely = elastic_net(x, targets, lam=path[6].lam)
    np.testing.assert_allclose(path[6].weight, lonely.weight, atol=1e-4)
    early = path[[size > 0 for size in sizes].index(True)]
    assert not early.weight[:, 3:].any(), "the three columns that matter come first"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": np.zeros((3, 0))}, ShapeMismatch, "of the same images"),
        ({"x": np.full((4, 2), np.nan)}, NotFinite, "rows of the elastic net hold NaN"),
        ({"targets": np.full((4, 2), 0.4)}, BadData, "sum to one"),
        ({"lam": -1.0}, OutOfRange, "lam is 0 or more"),
        ({"teacher": np.full((3, 2), 0.5)}, ShapeMismatch, "teacher's answers"),
    ],
)
def test_bad_input(change, error, text):
    given = {"x": np.ones((4, 2)), "targets": np.eye(2)[[0, 1, 0, 1]], **change}
    with pytest.raises(error, match=text):
        elastic_net(**given)


def test_bad_paths():
    x, targets = np.ones((4, 2)), np.eye(2)[[0, 1, 0, 1]]
    with pytest.raises(OutOfRange, match="0 < alpha"):
        elastic_net_path(x, targets, alpha=0.0)
    with pytest.raises(OutOfRange, match="fall from the first"):
        elastic_net_path(x, targets, lambdas=[0.1, 0.2])
