"""Two processes with half of a batch each: the mean of their gradients is that of the whole batch.

The processes are played one after the other: what one asks the other for is what it said in the round before, and
rounds are repeated until all questions have their answers (a variance asks for a mean first).
"""

import pytest
import torch

from sae.team import Team

ROUNDS = 4


class Played(Team):
    """One of two processes."""

    size = 2

    def __init__(self, rank, said):
        self.rank, self.said, self.now = rank, said, []

    def sum(self, value):
        self.now.append(value.clone())
        others = self.said[1 - self.rank]
        place = len(self.now) - 1
        return value + (others[place] if place < len(others) else value)

    def largest(self, value):
        raise AssertionError("nobody asks for a maximum here")

    def gather(self, rows):
        raise AssertionError("nobody asks for rows here")

    def share(self, dictionary):
        raise AssertionError("nothing is shared here")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("relu", {"aux": 0.3}),
        ("gated", {"aux": 0.3}),
        ("p_anneal", {"aux": 0.3}),
        ("jumprelu", {"penalty": "target", "l0": 3.0, "bandwidth": 0.05}),
        ("jumprelu", {"penalty": "quadratic", "l0": 3.0, "bandwidth": 0.05, "aux": 0.3}),
        ("topk", {"k": 3, "aux": 0.3}),
    ],
)
def test_two_processes_have_the_gradient_of_one(name, settings, make_case, make_step):
    case = make_case(name, **settings)

    def gradients(d, rows, step):
        d.zero_grad()
        x, y = d.normalised(rows)
        loss = d.architecture.loss(d, x, y, step)
        loss.total.backward()
        with torch.no_grad():
            d.architecture.after(d, loss, step)
        return {n: p.grad.clone() for n, p in d.named_parameters()}

    whole = case.dictionary()
    expected = gradients(whole, case.rows(), make_step(types=None))
    halves = [{site: rows[part::2] for site, rows in case.rows().items()} for part in range(2)]
    said = [[], []]
    for _ in range(ROUNDS):
        teams = [Played(rank, said) for rank in range(2)]
        parts = [case.dictionary() for _ in range(2)]
        found = [
            gradients(d, rows, make_step(types=None, team=team))
            for d, rows, team in zip(parts, halves, teams, strict=True)
        ]
        said = [team.now for team in teams]
    assert all(said), "nobody was asked"
    for n, gradient in expected.items():
        mean = (found[0][n] + found[1][n]) / 2
        assert (mean - gradient).abs().max() < 1e-10 * (1 + gradient.abs().max()), n
    for part in parts:
        for n, buffer in whole.named_buffers():
            assert torch.allclose(dict(part.named_buffers())[n].double(), buffer.double(), atol=1e-12), n
