"""What a row of a wave front needs in memory, and how many go through a block together."""

from mechvis.models.parts import TowerParts


def bytes_per_row(parts: TowerParts, element_size: int) -> tuple[int, int]:
    """Memory of one row: what it keeps from block to block (the stream), and what it needs while it is in a block (the
    normalised stream, q, k, v and z or the MLP's hidden layer before and after the activation, and the write; rows of
    ablated heads also the clean hidden layer)."""
    block = parts.blocks[0]
    scores = 0 if block.attn.fused() else 2 * block.attn.n_heads * parts.n_tokens
    working = max(6 * parts.d_model + scores, 3 * parts.d_model + (6 if block.gated else 3) * block.d_mlp)
    return parts.n_tokens * parts.d_model * element_size, parts.n_tokens * working * element_size


WIDEST_ON_CPU = 4 * 2**20
"""Bytes of the widest activation of the rows that go through a block together on a CPU; more only for `TOKENS_ON_CPU`.

Measured with one thread. Small activations stay in the cache, and are not taken fresh from the system and given back by
the C library each time: the bundled model's sweep (65 KiB per row, beside other programs) took 232 ms with groups of 32
and of 64 rows, 237 (96), 269 (128) and 296 (252 rows, 34,000 page faults).
"""

TOKENS_ON_CPU = 800
"""Tokens that suffice for matrix products at full speed: a ViT-B/16 block (2.3 MiB per row) took 37.5 ms per row (1 row
together), 33.7 (4), 33.5 (8), 34.3 (16), 35.6 (48); its whole head sweep 27.1 s (4), 26.8 (10), 27.9 (32), 28.6 (145).
"""


def rows_at_once(parts: TowerParts, element_size: int) -> int:
    """Rows that go through a block together on a CPU."""
    block = parts.blocks[0]
    scores = 0 if block.attn.fused() else block.attn.n_heads * parts.n_tokens
    widest = parts.n_tokens * max(block.d_mlp, 3 * parts.d_model, scores) * element_size
    return max(1, WIDEST_ON_CPU // widest, TOKENS_ON_CPU // parts.n_tokens)
