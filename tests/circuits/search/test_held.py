"""Images that are run once and kept, or run anew where they do not fit."""

from dataclasses import replace

import pytest
import torch

from circuits.search.held import Held, part, size_of


def test_runs_are_kept_where_they_fit(cue):
    held = Held(cue, 3)
    first = list(held)
    assert held.kept and len(first) == len(held) == 3
    assert [list(batch.rows) for batch in first] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert all(one is other for one, other in zip(first, held, strict=True)), "the same objects again"


@pytest.mark.parametrize("options", [{"share": 0.0}, {}])
def test_runs_are_made_anew_where_they_do_not_fit(cue, options):
    task = cue if options else replace(cue, budget=size_of(cue.batch(range(3))))
    held = Held(task, 3, **options)
    first, second = list(held), list(held)
    assert not held.kept and first[0] is not second[0]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.logits, other.logits) and torch.equal(one.clean.streams[1], other.clean.streams[1])


def test_a_pass_that_is_broken_off_keeps_nothing(cue):
    held = Held(cue, 3)
    next(iter(held))
    assert not held.kept and len(list(held)) == 3 and held.kept


def test_size_is_that_of_the_tensors(cue):
    batch = cue.batch(range(2))
    tokens, width = batch.clean.embed.shape[1:]
    per_run = 8 * 2 * tokens * width * (1 + 2 + 3)  # embedding, two MLPs, three streams
    z = 8 * sum(value.numel() for value in batch.clean.z)
    assert size_of(batch) == 2 * (per_run + z)


def test_part_of_a_batch_is_the_batch_of_a_part(cue):
    rows = [5, 0, 3]
    some, alone = part(cue.batch(range(8)), rows), cue[rows].batch(range(3))
    assert torch.equal(some.classes[0], alone.classes[0]) and torch.equal(some.classes[1], alone.classes[1])
    torch.testing.assert_close(some.logits, alone.logits, rtol=1e-12, atol=1e-12)
    for one, other in zip(some.base.tensors(), alone.base.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
