"""Cards of read-outs: probes, text spans, concepts. `record.card(data)` is the way in; see `mechvis.cards`."""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "probe_card": "probes.cards.of_probe",
        "text_span_card": "probes.cards.of_text_span",
        "concepts_card": "probes.cards.of_concepts",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from probes.cards.of_concepts import concepts_card
    from probes.cards.of_probe import probe_card
    from probes.cards.of_text_span import text_span_card
