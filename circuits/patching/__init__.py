"""Activation patching: put one half's activation into a run of the other half, and see how far the output follows.

* `patch` is the whole method; `summary` says in words what it found, `report` writes it as a page.
* `units`: what can be patched; `groups`: object and background of pairs; `inside_head`: the short exact way of queries,
  keys, values and patterns.
* `job`: one direction as a job of the sweep engine; `ratios`: from effects to shares of the clean-corrupt difference.
* `maps`: effects laid over the images.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "patch": "circuits.patching.patch",
        "HeadPart": "circuits.patching.units",
        "object_groups": "circuits.patching.groups",
        "summary": "circuits.patching.words",
        "report": "circuits.patching.words",
        "map_figure": "circuits.patching.maps",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from circuits.patching.groups import object_groups
    from circuits.patching.maps import map_figure
    from circuits.patching.patch import patch
    from circuits.patching.units import HeadPart
    from circuits.patching.words import report, summary
