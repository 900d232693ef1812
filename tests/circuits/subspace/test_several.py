"""Two variables at one hook: F9's a and b get orthogonal rows, each of which changes its own answer only."""

import pytest
import torch

from circuits.subspace import DasSettings, Drawer, Variable, accuracy_of, read_tail, train_several
from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.testing.rotated_pair import rotated_pair


@pytest.fixture(scope="module")
def case():
    pair = rotated_pair()
    images = pair.images(600, seed=2)
    tail = read_tail(images.h, pair.read, pair.head, name="F9")
    a = Variable(name="a", values=images.a, answer=lambda b, s: pair.answer(images.a[s], images.b[b]))
    b = Variable(name="b", values=images.b, answer=lambda b, s: pair.answer(images.a[b], images.b[s]))
    return pair, tail, a, b


def test_each_block_holds_its_variable(case):
    pair, tail, a, b = case
    settings = DasSettings(steps=250, rate=2e-2)
    found = train_several(tail, [a, b], torch.arange(400), ks=[1, 1], settings=settings)
    pairs = Drawer(torch.arange(400, 600), seed=0).rounds(1000)
    for own, other, learnt in ((a, b, found[0]), (b, a, found[1])):
        assert accuracy_of(tail, own, pairs, learnt.rows).iia > 0.97
        assert accuracy_of(tail, other, pairs, learnt.rows).iia < 0.6
    assert float((found[0].rows @ found[1].rows.T).abs().max()) < 1e-10, "orthogonal"
    assert abs(float(pair.weights(found[1].rows)["b"])) > 0.8
    swapped = torch.cat([one.rows for one in found])
    both = Variable(name="both", values=a.values, answer=lambda base, source: a.labels[source])
    assert accuracy_of(tail, both, pairs, swapped).iia > 0.95, "both blocks together are the source's answer"


def test_refusals(case):
    _, tail, a, b = case
    with pytest.raises(ShapeMismatch, match="2 variables and ks=\\[1\\]"):
        train_several(tail, [a, b], torch.arange(100), ks=[1])
    with pytest.raises(ShapeMismatch, match="0 variables"):
        train_several(tail, [], torch.arange(100), ks=[])
    with pytest.raises(OutOfRange, match="at most 8 together"):
        train_several(tail, [a, b], torch.arange(100), ks=[4, 5])
