"""The two halves of a block as the wave front runs them: as they are, or compiled (`engine="compiled"`).

`torch.compile` fuses the norm, the activation and the additions with what is beside them. Blocks are compiled, not the
model: rows enter and heads are ablated between them. Each half of each block is compiled when it is first needed, for
one number of rows, and once more for any number; what it says is compared with the plain half the first time.

It pays where memory is the limit, on an accelerator; nothing was measured there yet. On a CPU it hardly does: one half
of a ViT-B/16 block (4 rows, one thread) took 75 ms instead of 82 (MLP) and 44 instead of 44 (attention), under bfloat16
autocast 20 instead of 20 and 17 instead of 18, and compiling takes about 2 seconds per half (and a C++ compiler).
"""

import types
from collections.abc import Callable

from torch import Tensor

from mechvis import block as plain
from mechvis.axes import PerHead, Residual
from mechvis.errors import FailedCheck, UnsupportedModel
from mechvis.models.parts import BlockParts, Layout
from mechvis.wave import lowered
from mechvis.wave.same import deviation, same


def attention(block: BlockParts, stream: Residual, layout: Layout) -> tuple[PerHead, Residual]:
    """z of all heads, and the attention half's write."""
    z = plain.heads(block, lowered.normed(block.ln1, stream), layout, None, lowered.mix)
    return z, plain.scaled(block.scale1, block.attn.out(plain.merge(z)))


def mlp(block: BlockParts, mid: Residual, layout: Layout = None) -> tuple[Tensor, Residual]:
    """Activations of all neurons, and the MLP half's write."""
    post = plain.neurons(block, lowered.normed(block.ln2, mid))
    return post, plain.scaled(block.scale2, block.mlp_out(post))


Half = Callable[[BlockParts, Residual, Layout], tuple[Tensor, Residual]]


class Halves:
    """The halves as they are."""

    def attention(self, block: BlockParts, stream: Residual, layout: Layout) -> tuple[PerHead, Residual]:
        return attention(block, stream, layout)

    def mlp(self, block: BlockParts, mid: Residual) -> tuple[Tensor, Residual]:
        return mlp(block, mid)


class CompiledHalves(Halves):
    """The halves compiled; kept as long as a sweep lasts."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], Half] = {}

    def attention(self, block: BlockParts, stream: Residual, layout: Layout) -> tuple[PerHead, Residual]:
        return self._run(attention, block, stream, layout)

    def mlp(self, block: BlockParts, mid: Residual) -> tuple[Tensor, Residual]:
        return self._run(mlp, block, mid, None)

    def _run(self, half: Half, block: BlockParts, x: Residual, layout: Layout) -> tuple[Tensor, Residual]:
        key = (id(block), half.__name__)
        if key in self._made:
            return self._made[key](block, x, layout)
        compiled = _compiled(half, len(self._made))
        try:
            found = compiled(block, x, layout)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnsupportedModel(
                f"engine='compiled': the {half.__name__} half of a block could not be compiled: {said} "
                "engine='wave' computes the same and needs no compiler."
            ) from error
        for own, expected in zip(found, half(block, x, layout), strict=True):
            if not same(own, expected):
                far = f"{deviation(own, expected):.1e} of the largest value"
                raise FailedCheck(
                    f"engine='compiled': the compiled {half.__name__} half of a block deviates by {far} from the same "
                    "half not compiled. Use engine='wave'."
                )
        self._made[key] = compiled
        return found


def _compiled(half: Half, number: int) -> Half:
    """torch counts how often one function was compiled, and gives up silently at some number: so each block has a
    function of its own."""
    import torch

    name = f"{half.__name__}_{number}"
    own = types.FunctionType(half.__code__.replace(co_name=name), half.__globals__, name, half.__defaults__)
    return torch.compile(own)
