"""What a causal graph must beat, and what must come out empty.

* *random graphs*: the same graph with every unit exchanged for another of its layer and kind. Their faithfulness says
  what so many units of these layers carry anyhow.
* *shuffled classes*: the first level of the search on images that are not of the class (or, where each image counts
  for its own class, with the classes exchanged between images). It should keep nothing; on average a share q of what is
  tested may slip through.
* *loud units*: the units with the largest activation, and what they do. Loud is not causal.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.causal_paths.effects import Effects
from circuits.causal_paths.joint import Edges, Joint
from circuits.causal_paths.nodes import OUT, name_of, unit_of
from circuits.causal_paths.runs import Runs
from circuits.causal_paths.screen import loudness_of
from circuits.causal_paths.search import Search
from mechvis.errors import BadData


def random_graphs(
    joint: Joint, edges: Edges, expanded: set[str], names: list[str], draws: int, seed: int
) -> Float[np.ndarray, " draw"]:
    """Faithfulness of graphs of the same shape between other units.

    Args:
        joint: measures.
        edges: the graph.
        expanded: units whose inputs are known.
        names: all units.
        draws: how many graphs.
        seed: of the draws.

    Raises:
        BadData: a layer has no other units.
    """
    generator = np.random.default_rng(seed)
    own = list(dict.fromkeys(node for edge in edges for node in edge if node != OUT))
    pools = {node: [name for name in names if _same(name, node) and name not in own] for node in own}
    for kind in {_key(node) for node in own}:
        asked = [node for node in own if _key(node) == kind]
        if len(pools[asked[0]]) < len(asked):
            raise BadData(
                f"layer {kind[0]} has {len(pools[asked[0]])} other {kind[1]} for the {len(asked)} of the graph: too "
                "few for random graphs."
            )
    found = []
    for _ in range(draws):
        swapped: dict[str, str] = {OUT: OUT}
        for kind in {_key(node): None for node in own}:
            asked = [node for node in own if _key(node) == kind]
            drawn = generator.choice(len(pools[asked[0]]), len(asked), replace=False)
            swapped |= {node: pools[asked[0]][int(place)] for node, place in zip(asked, drawn, strict=True)}
        other = tuple((swapped[writer], swapped[reader]) for writer, reader in edges)
        found.append(joint.faithfulness(other, {swapped[name] for name in expanded if name in swapped}))
    return np.array(found)


def shuffled_classes(search: Search, pool: Tensor, target: int | None, seed: int) -> dict[str, Any]:
    """The first level of the search where the class has nothing to do with the images.

    Args:
        search: the search proper.
        pool: pixels of images of all classes.
        target: the task's class, or None: each image counts for its own.
        seed: of the shuffle.

    Returns:
        `images`, `measured`, `kept` (names): what a search finds in nothing.

    Raises:
        BadData: the pool is all of one class, so there is nothing to shuffle.
    """
    effects, n = search.effects, len(search.runs)
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.permutation(len(pool))[:n])
    runs = Runs(search.model, pool[torch.from_numpy(rows)], budget=effects.runs.budget)
    answers = runs.logits.argmax(-1)
    if len(answers.unique()) < 2:
        raise BadData("the images are all of one class, so classes cannot be shuffled: pass others= images too.")
    if target is None:
        shuffled = answers[torch.from_numpy(generator.permutation(len(answers))).to(answers.device)]
    else:
        shuffled = torch.full_like(answers, target)
    other = Search(Effects(runs, effects.means, shuffled, effects.norm), search.settings)
    found = other.find(levels=1)
    return {"images": len(runs), "measured": found.tested[0]["measured"], "kept": list(found.nodes)}


def loud_units(search: Search, how: str, n: int = 5) -> list[dict[str, Any]]:
    """The units of the first level with the largest activation, and their exact effects.

    Args:
        search: the search.
        how: over tokens by `max` or `mean`.
        n: how many.
    """
    last = len(search.model.parts.blocks) - 1
    units = [
        unit
        for unit in search.units
        if unit.kind == "neurons" and (search.settings.start == "all" or unit.layer == last)
    ]
    if not units:
        return []
    loud = loudness_of(search.runs, units, how)
    names = [name_of(units[int(place)]) for place in np.argsort(-loud, kind="stable")[:n]]
    effects = search.effects.nodes(names)
    by_name = {name_of(unit): float(value) for unit, value in zip(units, loud, strict=True)}
    return [
        {
            "unit": name,
            "activation": by_name[name],
            "kl": float(effects[name].kl.mean()),
            "logit": float(effects[name].logit.mean()),
        }
        for name in names
    ]


def _key(node: str) -> tuple[int, str]:
    unit = unit_of(node)
    return unit.layer, unit.kind


def _same(name: str, node: str) -> bool:
    return _key(name) == _key(node)
