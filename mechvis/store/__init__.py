"""Activations on disk, or streamed: harvest them once, read them in shuffled batches, repair what a disk has lost.

    store = mechvis.harvest(model, images, ["blocks.2.hook_resid_post"], out="runs/acts", tokens="patches")
    for batch in store.batches("blocks.2.hook_resid_post", size=4096, seed=0):
        batch.x, batch.image, batch.token                       # [row d_model], [row], [row]
    store = mechvis.store.open("runs/acts")
    for batch in mechvis.store.stream(model, images, "blocks.2.hook_resid_post", size=4096):
        ...                                                     # the same without a disk

The files and what a row is: `docs/store.md`.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "Activations": "mechvis.store.store",
        "Batch": "mechvis.store.reader",
        "Reader": "mechvis.store.reader",
        "Store": "mechvis.store.store",
        "harvest": "mechvis.store.harvest",
        "open": "mechvis.store.store",
        "stream": "mechvis.store.stream",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.store.harvest import harvest
    from mechvis.store.reader import Batch, Reader
    from mechvis.store.store import Activations, Store, open
    from mechvis.store.stream import stream
