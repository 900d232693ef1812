"""Which few cells of one image, put into another, turn the decision? The searches, as plain functions of tokens.

The score of tokens is any function to logits: the rest of a model from some block on, or a planted one. One step of the
greedy search:

1. *Screen*: the first-order gain of every pair (i, j), `(d_j - q_i) . d log p(c') / d q_i`, from one gradient, plus
   `weight * log sim(i, j)`. Pairs that are not among the most similar ones, or use a cell again, are out.
2. *Verify* the best `verify` pairs by running them; the best of these is done. With `verify=None` all pairs are run:
   the
   exact search, the plain twin.
3. Stop when the class is c', or no cell is left.

The relaxed search mixes all cells at once, `(1 - a) q + a (P d)`, with a in [0, 1] per cell and P row-stochastic, and
minimises `-log p(c') + sparse * sum a + entropy * H(P)`; its order is then done swap by swap, with P made injective.
Source: methods2.md 19.1 [C]; the relaxed form [K], screening and its verification [X].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.attribution.adam import adam
from mechvis.errors import OutOfRange, ShapeMismatch

Logits = Callable[[Float[Tensor, "row patch d_model"]], Float[Tensor, "row class"]]


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """Swaps in the order they were done."""

    pairs: tuple[tuple[int, int], ...]
    """(cell of the query, cell of the distractor)."""
    scores: tuple[float, ...]
    """log p of the distractor's class: before any swap, then after each."""
    flipped: bool
    """The distractor's class won in the end."""
    forwards: int
    """Rows that were run."""
    backwards: int = 0
    """Gradients that were taken."""


@dataclass(kw_only=True, eq=False)
class Task:
    """One query, one distractor, a class to be reached."""

    logits: Logits
    """Of tokens."""
    query: Float[Tensor, "patch d_model"]
    """Tokens that are changed."""
    other: Float[Tensor, "cell d_model"] | Float[Tensor, "patch cell d_model"]
    """Tokens that are put in: cells of one distractor, or of several one after the other; with a third axis, what each
    cell becomes at each place."""
    wanted: int
    """Class to be reached."""
    batch_size: int = 256
    """Rows at a time."""
    forwards: int = 0
    """Rows so far."""
    backwards: int = 0
    """Gradients so far."""

    def __post_init__(self):
        if self.other.ndim == 2 and self.query.ndim == 2:
            self.other = self.other.expand(len(self.query), *self.other.shape)
        wide = (len(self.query), self.query.shape[-1])
        if self.query.ndim != 2 or self.other.ndim != 3 or (len(self.other), self.other.shape[2]) != wide:
            raise ShapeMismatch(
                f"tokens are [patch d_model] and [cell d_model], got {list(self.query.shape)} and "
                f"{list(self.other.shape)}."
            )
        self.n_cells = self.other.shape[1]

    def run(self, tokens: Float[Tensor, "row patch d_model"]) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
        """log p of the wanted class, and whether it wins."""
        self.forwards += len(tokens)
        with torch.no_grad():
            logits = torch.cat([self.logits(part) for part in tokens.split(self.batch_size)])
        return logits.log_softmax(-1)[:, self.wanted], logits.argmax(-1) == self.wanted

    def slope(self, tokens: Float[Tensor, "patch d_model"]) -> Float[Tensor, "patch d_model"]:
        """Gradient of log p of the wanted class."""
        self.forwards, self.backwards = self.forwards + 1, self.backwards + 1
        tokens = tokens.detach().requires_grad_(True)
        with torch.enable_grad():
            score = self.logits(tokens[None]).log_softmax(-1)[0, self.wanted]
            return torch.autograd.grad(score, tokens)[0]

    def swapped(self, tokens: Float[Tensor, "patch d_model"], pairs: Tensor) -> Float[Tensor, "row patch d_model"]:
        """The tokens after each of some single swaps `[row 2]`."""
        rows = tokens.repeat(len(pairs), 1, 1)
        rows[torch.arange(len(pairs)), pairs[:, 0]] = self.other[pairs[:, 0], pairs[:, 1]]
        return rows


def similarity(
    query: Float[Tensor, "patch d"], other: Float[Tensor, "cell d"], tau: float = 0.1
) -> Float[Tensor, "patch cell"]:
    """`log softmax_j (cos(u_i, u_j) / tau)`: which cells of the distractor a cell looks like.

    Raises:
        OutOfRange: tau is not positive.
    """
    if not tau > 0:
        raise OutOfRange(f"tau={tau}: a temperature is positive.")
    unit = [side / side.norm(dim=-1, keepdim=True).clamp(min=1e-12) for side in (query, other)]
    return (unit[0] @ unit[1].T / tau).log_softmax(-1)


def greedy(
    task: Task,
    *,
    likeness: Float[Tensor, "patch cell"] | None = None,
    weight: float = 0.4,
    similar: float = 0.2,
    verify: int | None = 64,
    most: int | None = None,
) -> Swaps:
    """Swaps one by one, the best at each step, until the class turns.

    Args:
        task: what to turn.
        likeness: log-similarity of cells from :func:`similarity`; None: any pair may be swapped.
        weight: of the log-similarity against log p.
        similar: share of all pairs, the most similar ones, that may be swapped at all.
        verify: pairs that are run at each step; None: all (exact).
        most: swaps at most; default: every cell.

    Raises:
        OutOfRange: `similar` outside (0, 1], a negative weight, no pair to verify.

    Example:
        >>> from mechvis.testing.swap_grid import swap_grid
        >>> grid = swap_grid()
        >>> greedy(Task(logits=grid.logits, query=grid.query, other=grid.other, wanted=1)).pairs
        ((3, 4),)
    """
    if not 0 < similar <= 1 or not weight >= 0 or (verify is not None and verify < 1):
        raise OutOfRange(
            f"similar={similar}, weight={weight}, verify={verify}: a share above 0, a weight not below 0, at least one "
            "pair."
        )
    n_query, n_other = len(task.query), task.n_cells
    allowed = torch.ones(n_query, n_other, dtype=torch.bool)
    bonus = torch.zeros(n_query, n_other, dtype=task.query.dtype)
    if likeness is not None:
        count = max(1, round(similar * likeness.numel()))
        allowed = likeness >= likeness.flatten().topk(count).values[-1]
        bonus = weight * likeness
    return _steps(task, allowed, bonus, verify, min(n_query, n_other) if most is None else most)


def _steps(task: Task, allowed: Tensor, bonus: Tensor, verify: int | None, most: int) -> Swaps:
    tokens, done = task.query.clone(), []
    score, won = task.run(tokens[None])
    scores, flipped = [float(score[0])], bool(won[0])
    allowed = allowed.clone()
    while not flipped and len(done) < most and bool(allowed.any()):
        pairs = allowed.nonzero()
        if verify is not None and len(pairs) > verify:
            first = _first_order(task, tokens) + bonus
            pairs = pairs[first[allowed].topk(verify).indices]
        found, wins = task.run(task.swapped(tokens, pairs))
        best = int((found + bonus[pairs[:, 0], pairs[:, 1]]).argmax())
        i, j = (int(at) for at in pairs[best])
        tokens[i] = task.other[i, j]
        allowed[i], allowed[:, j] = False, False
        done.append((i, j))
        scores.append(float(found[best]))
        flipped = bool(wins[best])
    return Swaps(
        pairs=tuple(done), scores=tuple(scores), flipped=flipped, forwards=task.forwards, backwards=task.backwards
    )


def _first_order(task: Task, tokens: Float[Tensor, "patch d_model"]) -> Float[Tensor, "patch cell"]:
    """What each swap would gain if log p were linear."""
    slope = task.slope(tokens)
    return torch.einsum("id,ijd->ij", slope, task.other) - (slope * tokens).sum(-1, keepdim=True)


def in_order(task: Task, pairs: list[tuple[int, int]]) -> Swaps:
    """Given swaps one after the other, until the class turns."""
    tokens = [task.query]
    for i, j in pairs:
        tokens.append(tokens[-1].clone())
        tokens[-1][i] = task.other[i, j]
    found, wins = task.run(torch.stack(tokens))
    first = wins.nonzero()
    stop = int(first[0]) if len(first) else len(pairs)
    return Swaps(
        pairs=tuple(pairs[:stop]),
        scores=tuple(found[: stop + 1].tolist()),
        flipped=bool(len(first)),
        forwards=task.forwards,
        backwards=task.backwards,
    )


def random_swaps(task: Task, generator: torch.Generator) -> Swaps:
    """Random cells of the distractor in random places, each once: what a search has to beat."""
    count = min(len(task.query), task.n_cells)
    places, sources = (torch.randperm(side, generator=generator)[:count] for side in (len(task.query), task.n_cells))
    return in_order(task, list(zip(places.tolist(), sources.tolist(), strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Relaxed:
    """A relaxed search's result."""

    amount: Float[Tensor, " patch"]
    """How much of each cell is replaced, 0 to 1."""
    sources: Float[Tensor, "patch cell"]
    """Where it comes from; rows add up to 1."""
    swaps: Swaps
    """Done one by one, largest amount first, each cell of the distractor once."""


def relaxed(task: Task, *, sparse: float = 1.0, entropy: float = 0.1, steps: int = 200, rate: float = 0.1) -> Relaxed:
    """Mix all cells at once by gradient descent, then swap in the order of how much was mixed.

    Args:
        task: what to turn.
        sparse: weight of the sum of amounts.
        entropy: weight of the mean entropy of the sources.
        steps, rate: of Adam.

    Raises:
        OutOfRange: negative weights, no step.

    Example:
        >>> from mechvis.testing.swap_grid import swap_grid
        >>> grid = swap_grid()
        >>> relaxed(Task(logits=grid.logits, query=grid.query, other=grid.other, wanted=1)).amount.argmax().item()
        3
    """
    if not sparse >= 0 or not entropy >= 0 or steps < 1 or not rate > 0:
        raise OutOfRange(f"sparse={sparse}, entropy={entropy}, steps={steps}, rate={rate}: none may be negative.")
    a = torch.zeros(len(task.query), dtype=task.query.dtype, requires_grad=True)
    p = torch.zeros(len(task.query), task.n_cells, dtype=task.query.dtype, requires_grad=True)
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in (a, p)]
    for step in range(1, steps + 1):
        with torch.enable_grad():
            amount, sources = torch.sigmoid(a), p.softmax(-1)
            brought = torch.einsum("ij,ijd->id", sources, task.other)
            mixed = torch.lerp(task.query, brought, amount[:, None])
            score = task.logits(mixed[None]).log_softmax(-1)[0, task.wanted]
            unsure = torch.special.entr(sources).sum(-1).mean()
            slopes = torch.autograd.grad(-score + sparse * amount.sum() + entropy * unsure, [a, p])
        a, p = (
            adam(one, slope, both, step, rate).requires_grad_(True)
            for one, slope, both in zip((a, p), slopes, moments, strict=True)
        )
    task.forwards, task.backwards = task.forwards + steps, task.backwards + steps
    amount, sources = torch.sigmoid(a).detach(), p.softmax(-1).detach()
    free, pairs = torch.ones(task.n_cells, dtype=torch.bool), []
    for i in amount.argsort(descending=True, stable=True).tolist():
        if not bool(free.any()):
            break
        j = int(torch.where(free, sources[i], -1.0).argmax())
        free[j] = False
        pairs.append((i, j))
    return Relaxed(amount=amount, sources=sources, swaps=in_order(task, pairs))
