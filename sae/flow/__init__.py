"""Feature flow across layers: which latents go on in the next dictionary, and steering along the way.

* `feature_flow`: fates of latents through the dictionaries of several layers, with what chance reaches.
* `match`, `null_cosine`: the rule for two sets of decoder rows.
* `transported`: directions moved to a later site by the model. `steering_chain`: edits along a chain of matches.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "feature_flow": "sae.flow.layers",
        "FeatureFlow": "sae.flow.layers",
        "match": "sae.flow.matching",
        "Match": "sae.flow.matching",
        "null_cosine": "sae.flow.matching",
        "transported": "sae.flow.moved",
        "steering_chain": "sae.flow.chain",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.flow.chain import steering_chain
    from sae.flow.layers import FeatureFlow, feature_flow
    from sae.flow.matching import Match, match, null_cosine
    from sae.flow.moved import transported
