"""Random numbers that belong to an example and a purpose."""

import numpy as np
import pytest
import torch

from mechvis.keyed import generator_of, numpy_of


def torch_draw(*key):
    return torch.rand(4, generator=generator_of(*key))


def numpy_draw(*key):
    return torch.from_numpy(numpy_of(*key).random(4))


@pytest.mark.parametrize("draw", [torch_draw, numpy_draw])
def test_same_key_same_numbers_and_any_other_key_others(draw):
    first = draw(0, 5, "masks")
    assert torch.equal(first, draw(0, 5, "masks"))
    for other in ((1, 5, "masks"), (0, 6, "masks"), (0, 5, "noise")):
        assert not torch.equal(first, draw(*other))


def test_keys_do_not_run_into_each_other():
    """Seed 1 of example 23 is not seed 12 of example 3."""
    assert not torch.equal(torch_draw(1, 23, "a"), torch_draw(12, 3, "a"))
    assert not torch.equal(torch_draw(0, 1, "1a"), torch_draw(0, 11, "a"))


def test_an_id_is_the_same_as_a_number_and_as_a_word():
    assert torch.equal(torch_draw(0, 5, "a"), torch_draw(0, "5", "a"))


def test_numbers_are_fixed_for_good():
    """Stored results rest on them: a change of the scheme has to be seen."""
    assert int(numpy_of(0, 5, "masks").integers(1000)) == 98
    assert int(torch.randint(1000, (1,), generator=generator_of(0, 5, "masks"))) == 578


def test_global_generators_are_left_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch_draw(0, 1, "a")
    numpy_draw(0, 1, "a")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_examples_are_independent_and_uniform():
    drawn = np.stack([numpy_of(0, example, "a").random(8) for example in range(2000)])
    assert abs(drawn.mean() - 0.5) < 0.01 and abs(drawn.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.06
