"""The output as an exact sum of what heads, MLPs, tokens and biases write: the direct effects.

`terms` splits one batch, `stream` many batches, `decompose` gives a table for a whole image set, `ablations` removes
terms from the sum and, beside that, from the forward pass. How the read-out is made linear: `readout`.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "terms": "mechvis.decompose.terms",
        "Terms": "mechvis.decompose.terms",
        "stream": "mechvis.decompose.stream",
        "decompose": "mechvis.decompose.decomposition",
        "Decomposition": "mechvis.decompose.decomposition",
        "ablations": "mechvis.decompose.ablations",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.decompose.ablations import ablations
    from mechvis.decompose.decomposition import Decomposition, decompose
    from mechvis.decompose.stream import stream
    from mechvis.decompose.terms import Terms, terms
