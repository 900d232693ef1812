"""What the machine can do: the rate of matrix products of a model's MLP shapes, and the bandwidth of a copy.

Each is the best of several tries, because a limit is what a program could reach, not what this run happened to get.
"""

import functools

import torch

from benchmarks import models
from benchmarks.race import Clock

TRIES = 8
TOKENS = {"cpu": 2048, "cuda": 32768}
"""Rows of the matrix products: enough for full speed."""
COPIED = {"cpu": 2**28, "cuda": 2**31}
"""Bytes of the copied buffer: many times the last cache."""
SHORTEST = 0.005
"""Seconds that a timing lasts at the least; shorter products are repeated."""


@functools.cache
def matmul_rate(name: str, device: str, precision: str) -> float:
    """FLOP/s of the better of a model's two MLP products, `[token d] [d hidden]` and `[token hidden] [hidden d]`.

    Args:
        name: the model.
        device: `cpu` or `cuda`.
        precision: `fp32`, `tf32` or `bf16`.
    """
    s, n = models.shape(name), TOKENS[device]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rates = []
    with models.precision(precision):
        for inner, outer in ((s.width, s.hidden), (s.hidden, s.width)):
            a = torch.randn(n, inner, device=device).to(dtype)
            b = torch.randn(inner, outer, device=device).to(dtype)
            seconds = best(lambda a=a, b=b: torch.mm(a, b), Clock(device))
            rates.append(2 * n * inner * outer / seconds)
    return max(rates)


@functools.cache
def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy between buffers that fit no cache."""
    source = torch.ones(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED[device] / best(lambda: target.copy_(source), Clock(device))


def best(work, clock: Clock) -> float:
    """Seconds of one call at its fastest."""
    work()
    repeats, found = 1, float("inf")
    for _ in range(TRIES):
        start = clock.now()
        for _ in range(repeats):
            work()
        seconds = clock.now() - start
        found = min(found, seconds / repeats)
        if seconds < SHORTEST:
            repeats *= 4
    return found
