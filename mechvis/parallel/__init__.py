"""Work in pieces on several processes and machines: who does what, what is done, and how it is put together again."""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "World": "mechvis.parallel.world",
        "world": "mechvis.parallel.world",
        "start": "mechvis.parallel.launch",
        "RankFailed": "mechvis.parallel.launch",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.parallel.launch import RankFailed, start
    from mechvis.parallel.world import World, world
