"""The wave front: many ablations of the same images in one pass over the blocks.

* `front` is the pass itself, `rows` its growing batch, `memory` what that needs.
* `few_queries` and `head_rows` are exact short ways through the last block and through the block of an ablated head;
  `same` is how they are tried.
* `lowered` is what low precision does otherwise; `halves` runs the halves of a block, as they are or compiled.
"""

from mechvis.wave.front import PerImage, Replacement, wave
from mechvis.wave.memory import bytes_per_row, rows_at_once

__all__ = ["PerImage", "Replacement", "bytes_per_row", "rows_at_once", "wave"]
