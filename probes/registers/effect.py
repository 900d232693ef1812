"""Do test-time registers do what they promise? Token lengths and answers before and after, beside two controls.

* `registers`: the chosen neurons' activations go to the new tokens.
* `tokens only`: the same tokens stay zeros; nothing is moved. They take part in attention, which alone changes answers.
* `random neurons`: as many neurons of the same blocks, drawn at random, are moved.

It works if patches are no longer long, the register is, the answers stay, and the controls change nothing of the first.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, EffectlessEdit, OutOfRange
from mechvis.labels import with_model_classes
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap, paired_difference
from probes.registers.added_tokens import with_registers


class RegisterEffect(Record):
    """Before and after test-time registers; see :func:`register_effect`."""

    KIND = "register_effect"


@torch.no_grad()
def register_effect(
    model: Any,
    images: Any,
    neurons: Mapping[int, Sequence[int]],
    *,
    layer: int,
    threshold: float,
    n_registers: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> RegisterEffect:
    """What registers change, image by image.

    Args:
        model: a wrapped image tower with a head.
        images: other images than those that chose the neurons; with labels, accuracy is measured.
        neurons: layer -> MLP units.
        layer: after which block tokens are measured.
        threshold: length above which a patch is long.
        n_registers: tokens to add.
        batch_size: images per forward.
        seed: of the random neurons and the bootstrap.

    Returns:
        RegisterEffect: per arm `longest` (patch), `share` (of long patches), `register` (length of the longest
        register), `changed` (total variation of the probabilities against the model as it is), `accuracy`, each
        with an interval; and the paired difference of `longest` to the model as it is.

    Raises:
        BadData: the model has no head.
        OutOfRange, RefusedMethod: see :func:`with_registers`.

    Example:
        >>> register_effect(model, others, found.by_layer(), layer=9, threshold=30.0)              # doctest: +SKIP
    """
    if model.parts.head is None:
        raise BadData("this model has no head, so there is no answer to compare. For CLIP use clip.classifier(names).")
    if not 0 <= layer < len(model.parts.blocks):
        raise OutOfRange(f"layer {layer} does not exist: this model has layers 0 to {len(model.parts.blocks) - 1}.")
    registered = with_registers(model, neurons, n=n_registers)
    random = with_registers(model, _random(model, registered.neurons, seed), n=n_registers)
    labels = None
    if isinstance(images, ImageSet) and images.labels is not None:
        labels = np.asarray(with_model_classes(images, model).labels)
    arms = {
        "as it is": _Arm(model, (), 0),
        "registers": _Arm(registered.model, registered.edits, n_registers),
        "tokens only": _Arm(registered.model, (), n_registers),
        "random neurons": _Arm(random.model, random.edits, n_registers),
    }
    found = {name: arm.measure(images, layer, len(model.parts.prefix), batch_size) for name, arm in arms.items()}
    start = found["as it is"]
    rows, arrays = [], {}
    for name, each in found.items():
        values = {
            "longest": each["patches"].max(1),
            "share": (each["patches"] > threshold).mean(1),
            "register": each["registers"].max(1) if each["registers"].shape[1] else np.full(len(each["p"]), np.nan),
            "changed": 0.5 * np.abs(each["p"] - start["p"]).sum(1),
        }
        if labels is not None:
            values["accuracy"] = (each["p"].argmax(1) == labels).astype(np.float64)
        row: dict[str, Any] = {"arm": name}
        for measure, per_image in values.items():
            one = bootstrap(per_image, seed=seed)
            row |= {measure: float(one.effect[0]), f"{measure}_low": float(one.low[0])}
            row |= {f"{measure}_high": float(one.high[0])}
            arrays[f"{measure}/{name.replace(' ', '_')}"] = per_image
        shorter = paired_difference(values["longest"], start["patches"].max(1), seed=seed)
        row |= {"longest_change": float(shorter.effect[0]), "longest_change_low": float(shorter.low[0])}
        rows.append(row | {"longest_change_high": float(shorter.high[0]), "n": len(each["p"])})
    return RegisterEffect(
        title=f"Test-time registers in {getattr(model, 'name', '') or 'a model'}, tokens after block {layer}",
        tables={"arms": pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None))},
        arrays=arrays,
        facts={
            "layer": layer,
            "threshold": threshold,
            "registers": n_registers,
            "neurons": {str(at): list(units) for at, units in registered.neurons.items()},
        },
        words={
            "longest": "length of the longest patch token, mean over images",
            "share": "share of patches above the threshold",
            "register": "length of the longest register",
            "changed": "total variation of the class probabilities against the model as it is, 0 to 1",
            "longest_change": "longest minus that of the model as it is, paired by image",
        },
        caveats=(
            "An added token takes part in attention even when it is zero: compare with `tokens only`.",
            "Use other images here than those that chose the neurons.",
        ),
        provenance=provenance(model=model, images=images if isinstance(images, ImageSet) else None, seed=seed),
    )


class _Arm:
    """A model with edits, and how many registers lie after its prefix."""

    def __init__(self, model: Any, moves: Sequence[Any], n_registers: int):
        self.model, self.moves, self.n_registers = model, list(moves), n_registers

    def measure(self, images: Any, layer: int, prefix: int, batch_size: int) -> dict[str, np.ndarray]:
        site = f"blocks.{layer}.hook_resid_post"
        lengths, p = [], []
        for start in range(0, len(images), batch_size):
            with warnings.catch_warnings():
                # A random neuron of the control may be silent: moving nothing is its result.
                warnings.simplefilter("ignore", EffectlessEdit)
                run = self.model.run(images[start : start + batch_size], edits=self.moves, capture=[site])
            lengths.append(run.cache[site].double().norm(dim=-1).cpu().numpy())
            p.append(run.output.double().softmax(-1).cpu().numpy())
        tokens = np.concatenate(lengths)
        first = prefix + self.n_registers
        return {"patches": tokens[:, first:], "registers": tokens[:, prefix:first], "p": np.concatenate(p)}


def _random(model: Any, neurons: Mapping[int, Sequence[int]], seed: int) -> dict[int, list[int]]:
    """As many other neurons of the same blocks."""
    generator = np.random.default_rng(seed)
    found = {}
    for layer, units in neurons.items():
        others = np.setdiff1d(np.arange(model.parts.blocks[layer].d_mlp), list(units))
        found[layer] = generator.permutation(others)[: len(units)].tolist()
    if not any(found.values()):
        raise BadData("all neurons of the blocks are register neurons: there are no others for the control.")
    return found
