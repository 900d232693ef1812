"""Where training rows come from: a store, a model with its images, tensors, or any iterator; one face for all.

A source hands out batches for ever (epoch after epoch, each in an order of its own) and can say where it is: a position
is a few numbers, and a run continues from it bit by bit. An iterator that cannot say where it is can be trained from
too; then a resumed run starts it anew and skips what was seen, which is exact if it begins the same way every time.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Rows": "sae.data.rows",
        "Source": "sae.data.rows",
        "TensorRows": "sae.data.tensors",
        "ReaderRows": "sae.data.activations",
        "from_store": "sae.data.activations",
        "from_model": "sae.data.activations",
        "IteratorRows": "sae.data.iterator",
        "Together": "sae.data.together",
        "source": "sae.data.choose",
        "sample": "sae.data.choose",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from sae.data.activations import ReaderRows, from_model, from_store
    from sae.data.choose import sample, source
    from sae.data.iterator import IteratorRows
    from sae.data.rows import Rows, Source
    from sae.data.tensors import TensorRows
    from sae.data.together import Together
