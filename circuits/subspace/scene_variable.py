"""Factors of the bundled scenes as variables: shape, background, colour.

Of a scene every counterfactual can be drawn. So there are two kinds of answer, and they ask different things:

* *the factor itself* (`answers="factor"`): right for a model that names the factor. The interchange should make it name
  the source's.
* *the model's answer to the drawn counterfactual* (`answers="drawn"`): the base is drawn again with the factor at each
  of its values, and `y*(b, s)` is what the model says to that picture. Right for a factor that the model uses without
  naming it (a background that pulls the answer), and for a model that errs: a faithful interchange repeats its errors.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from circuits.subspace.variable import Variable, label_variable, table_variable
from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES, SceneFactors
from mechvis.data.scenes import scene_set
from mechvis.errors import BadData, unknown

Factor = Literal["shape", "background", "colour"]
FACTORS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "background": BACKGROUNDS, "colour": COLOURS}


def scene_variable(
    factors: SceneFactors,
    factor: Factor,
    *,
    answers: Literal["factor", "drawn"] = "factor",
    model: Any = None,
    batch_size: int = 256,
) -> Variable:
    """A factor of scenes as a variable.

    Args:
        factors: the scenes, in the order of the images.
        factor: which one.
        answers: `factor`: the model names it; `drawn`: the model's answers to the scenes drawn with each value.
        model: a wrapped model with a head, for `drawn`.
        batch_size: scenes per forward.

    Raises:
        UnknownName: no such factor or kind of answer.
        BadData: `drawn` without a model, or (said before anything is trained) a factor that never changes an answer.

    Example:
        >>> from mechvis.data.scenes import sample_factors
        >>> scene_variable(sample_factors(20, seed=0), "shape").value_names[0]
        'circle'
    """
    if factor not in FACTORS:
        raise unknown("factor", factor, FACTORS)
    names, values = FACTORS[factor], torch.from_numpy(np.asarray(getattr(factors, factor)))
    if answers == "factor":
        return label_variable(values, name=factor, value_names=names)
    if answers != "drawn":
        raise unknown("kind of answer", answers, ("factor", "drawn"))
    if model is None:
        raise BadData("answers='drawn' are the model's own answers to the scenes drawn anew; pass model=.")
    columns = [
        _answers(model, replace(factors, **{factor: _all(value, len(factors))}), batch_size)
        for value in range(len(names))
    ]
    table = torch.stack(columns, dim=1)
    if bool((table == table[:, :1]).all()):
        raise BadData(
            f"the {factor} never changes this model's answer to these {len(factors)} scenes: there is no behaviour to "
            "interchange. Choose another factor, or scenes on which it matters."
        )
    return table_variable(values, table, name=factor, value_names=names)


def _all(value: int, n: int) -> np.ndarray:
    return np.full(n, value, dtype=np.int64)


@torch.no_grad()
def _answers(model: Any, factors: SceneFactors, batch_size: int) -> torch.Tensor:
    ids = tuple(f"scene/{i:06d}" for i in range(len(factors)))
    images = scene_set(factors, name="counterfactual scenes", ids=ids, recipe="scenes by their factors")
    found = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        found.append(model.run(model.inputs(part)).logits.argmax(1).cpu())
    return torch.cat(found)
