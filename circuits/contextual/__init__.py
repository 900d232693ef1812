"""Contextual decomposition for transformers (CD-T): what of every activation stems from a source, in one forward pass.

=====================  =============================================================================================
name                   what it is for
=====================  =============================================================================================
`contextual`           the part of every head, MLP, neuron or token in the output
`interaction`          several sources together against the sum of each alone
`relevance_to`         the part of every source in other components: heads (z, q, k, v), MLPs, streams
`contextual_circuit`   a circuit search from the output backwards; gives a `Found`
`decompose`            both halves (beta, gamma) of any activation
`Rules`, `PRESETS`     what happens to the halves where there is a choice
=====================  =============================================================================================

With `rules="all_rest"` beta is exactly the effect of ablating the source; the other rules hold parts of the clean run.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "contextual": "circuits.contextual.scores",
        "interaction": "circuits.contextual.scores",
        "relevance_to": "circuits.contextual.relevance",
        "contextual_circuit": "circuits.contextual.search",
        "Found": "circuits.contextual.search",
        "decompose": "circuits.contextual.decompose",
        "Rules": "circuits.contextual.rules",
        "PRESETS": "circuits.contextual.rules",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.contextual.decompose import decompose
    from circuits.contextual.relevance import relevance_to
    from circuits.contextual.rules import PRESETS, Rules
    from circuits.contextual.scores import contextual, interaction
    from circuits.contextual.search import Found, contextual_circuit
