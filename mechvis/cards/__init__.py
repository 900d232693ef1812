"""Faithfulness cards: how far to believe an explanation, as a document that can be checked.

    card = found.card(CardData(model=model, images=images), level="smoke", seed=0)
    card                       # gates (failed ones first), measures beside their controls
    card.report("card.html")
    card.compare(other), card.verify(model)

* `CardData`: what an explanation is tried on; images that chose something are refused.
* `FaithfulnessCard`: immutable; JSON, Markdown, HTML, files.
* `Draft`: how cards are made; for kinds of explanations of one's own.
* `of_*`: one file per kind of explanation. Kinds of `circuits`, `probes` and `sae` have theirs there.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "CardData": "mechvis.cards.data",
        "subject": "mechvis.cards.data",
        "Draft": "mechvis.cards.draft",
        "FaithfulnessCard": "mechvis.cards.faithfulness_card",
        "Gate": "mechvis.cards.parts",
        "Measure": "mechvis.cards.parts",
        "GATES": "mechvis.cards.parts",
        "LEVELS": "mechvis.cards.parts",
        "compare": "mechvis.cards.compare",
        "verify": "mechvis.cards.verify",
        "scope_of": "mechvis.cards.scope",
        "attribution_card": "mechvis.cards.of_attribution",
        "ranking_card": "mechvis.cards.of_ranking",
        "edit_card": "mechvis.cards.of_edit",
    },
    ("thresholds",),
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.cards import thresholds
    from mechvis.cards.compare import compare
    from mechvis.cards.data import CardData, subject
    from mechvis.cards.draft import Draft
    from mechvis.cards.faithfulness_card import FaithfulnessCard
    from mechvis.cards.of_attribution import attribution_card
    from mechvis.cards.of_edit import edit_card
    from mechvis.cards.of_ranking import ranking_card
    from mechvis.cards.parts import GATES, LEVELS, Gate, Measure
    from mechvis.cards.scope import scope_of
    from mechvis.cards.verify import verify
