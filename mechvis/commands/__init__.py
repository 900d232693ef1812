"""The commands of the core: each reads its inputs, calls one public function, and says what came out.

Nothing heavy is imported before a command runs. Every flag is a parameter of the public function that the command
calls (`calls` says which), except for the few that say where models, images and outputs lie.

| file | commands |
| --- | --- |
| `bundled.py` | `models`, `data export`, `zoo train` |
| `graph.py` | `sites` |
| `ablation.py` | `sweep` |
| `reporting.py` | `report` |
| `checks.py` | `selftest` |
| `saved.py`, `words.py`, `processes.py` | none: what commands of all packages share |
"""

from mechvis.commands.ablation import sweep
from mechvis.commands.bundled import data, models, zoo
from mechvis.commands.checks import selftest
from mechvis.commands.graph import sites
from mechvis.commands.processes import launched
from mechvis.commands.reporting import report
from mechvis.commands.words import (
    SCENES_N,
    SCENES_SEED,
    calls,
    only_with,
    read_groups,
    read_images,
    read_model,
    read_targets,
)

__all__ = [
    "SCENES_N",
    "SCENES_SEED",
    "calls",
    "data",
    "launched",
    "models",
    "only_with",
    "read_groups",
    "read_images",
    "read_model",
    "read_targets",
    "report",
    "selftest",
    "sites",
    "sweep",
    "zoo",
]
