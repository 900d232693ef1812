"""nnsight's `with` blocks over the canonical names of a wrapped model.

    traced = mechvis.interop.nnsight.trace(model)
    with traced.trace(pixels):
        z = traced.blocks[3].attn.hook_z.output.save()
        traced.blocks[3].attn.hook_z.output[:, :, 1] = 0
        logits = traced.output.save()

How it works:

1. nnsight instruments every module of the tree that it wraps, for good. So it gets a tree of its own: a module per
   site that hands its input on. The wrapped model and the user's modules are never shown to it.
2. While a block runs, the forward visits every site and sends its value through that tree (see
   `mechvis.run.Watcher`); the rest of the time nobody watches and nothing is slower.
3. Scores, patterns, head results and norm scales exist only when asked for. A block of nnsight is at any moment waiting
   for the next value it asks for, so at the site it is known whether somebody waits: fused attention stays fused in the
   layers whose pattern no block reads.

nnsight is imported when :func:`trace` is called and never before. Importing it changes the process for good: it patches
`torch.Tensor.backward`, gives every Python object a `.save`, and makes a later `import beartype` fail.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mechvis.cache import Cache
from mechvis.errors import BadData, MissingPackage, ShapeMismatch
from mechvis.hooked import HookedViT
from mechvis.plan import plan
from mechvis.run import ACTIVE, Active


def trace(model: HookedViT) -> Any:
    """An nnsight model of a wrapped model: `with trace(model).trace(pixels): ...` over the canonical names.

    Each call makes an independent one. nnsight itself is not thread-safe, so every thread takes its own; the wrapped
    model may be shared.

    Args:
        model: a wrapped tower (for CLIP: `clip.vision`, `clip.text`, or `clip.classifier(names)`).

    Returns:
        An `nnsight.NNsight` whose modules are the sites. `.trace`, `.invoke` (images become rows of one batch),
        `.edit`, `.session`, `.cache`, `.skip` and gradients work as nnsight documents them. Edits of a surrounding
        `model.edited(...)` apply before the block sees a value.

    Raises:
        MissingPackage: nnsight is not installed.
        BadData: not a wrapped tower.

    Example:
        >>> traced = trace(model)                                                               # doctest: +SKIP
        >>> with traced.trace(pixels):                                                          # doctest: +SKIP
        ...     traced.blocks[1].attn.hook_pattern.output[:, 2] = 0.1
        ...     logits = traced.output.save()
    """
    if not isinstance(model, HookedViT):
        raise BadData(
            f"trace takes a wrapped tower, got {type(model).__name__}. For CLIP: clip.vision, clip.text, or "
            "clip.classifier(class_names); for a module: mechvis.load(module)."
        )
    return _traced_class()(Facade(model))


class Facade(nn.Module):
    """A module per site, in a tree of the sites' names; called, it runs the model through them."""

    def __init__(self, model: HookedViT):
        super().__init__()
        self.__dict__["model"] = model
        self.__dict__["points"] = {name: nn.Identity() for name in model.hook_dict}
        for name, child in _tree(self.points).items():
            self.add_module(name, child)
        self.eval()

    def forward(self, inputs: Tensor, **options: Any) -> Tensor:
        """The model's output, every site on its way visited."""
        outer = ACTIVE.get()
        active = outer if outer is not None and outer.owner is self.model else self._active()
        with self.model._running(active.watched_by(self)):
            return self.model(inputs, **options)

    def _active(self) -> Active:
        model = self.model
        return Active(
            plan=plan([], model.graph, model.parts.prefix),
            capture=frozenset(),
            cache=Cache(model.graph),
            owner=model,
            keep_graph=torch.is_grad_enabled(),
        )

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The user's model's parameters: nnsight moves inputs to where they are."""
        return self.model.parameters(recurse)

    # mechvis.run.Watcher

    def visit(self, name: str, x: Tensor) -> Tensor:
        """Through this site's module, where nnsight meets it."""
        return self.points[name](x)

    def wants(self, name: str) -> bool:
        """Is a block waiting for this site, or a cache recording it?"""
        interleaver, places = self.__dict__["listeners"]
        return interleaver.interleaving and any(
            place in interleaver.parked or place in interleaver.observers for place in places[name]
        )


def _tree(points: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules by dotted name to nested modules; names that count are a `ModuleList`."""
    groups: dict[str, dict[str, nn.Module]] = {}
    for name, point in points.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = point
    return {first: inside[""] if "" in inside else _branch(_tree(inside)) for first, inside in groups.items()}


def _branch(children: dict[str, nn.Module]) -> nn.Module:
    branch = nn.ModuleList() if all(name.isdigit() for name in children) else nn.Module()
    for name, child in children.items():
        branch.add_module(name, child)
    return branch


@functools.cache
def _traced_class() -> type:
    with contextlib.suppress(ImportError):
        import beartype  # noqa: F401  after nnsight it could not be imported any more
    try:
        from nnsight import NNsight
    except ImportError as error:
        raise MissingPackage("nnsight is not installed: pip install 'nnsight>=0.8,<0.9'.") from error

    class TracedViT(NNsight):
        """A wrapped model's sites as an nnsight tree; several invokes are rows of one batch."""

        def __init__(self, facade: Facade, *args: Any, **kwargs: Any):
            super().__init__(facade, *args, **kwargs)
            places = {
                name: tuple(f"{self.get(name).path}.{what}" for what in ("input", "output", "skip"))
                for name in facade.points
            }
            facade.__dict__["listeners"] = (self.interleaver, places)

        def _batch_size(self, *inputs: Any, **options: Any) -> int:
            return len(inputs[0]) if inputs else 0

        def _batch(self, invokes: list[tuple], fn: Any) -> tuple:
            if not invokes:
                return (), {}
            options = invokes[0][1]
            if any(other != options for _, other in invokes):
                raise BadData(f"invokes of one trace are rows of one batch: their options differ ({options}, ...).")
            model, start = self._module.model, options.get("start_at_layer", 0)
            rows = [model.inputs(given[0], start_at_layer=start) for given, _ in invokes]
            if any(other.shape[1:] != rows[0].shape[1:] for other in rows):
                raise ShapeMismatch(
                    f"invokes of one trace are rows of one batch: {[list(other.shape) for other in rows]} do not fit."
                )
            return (rows[0] if len(rows) == 1 else torch.cat(rows),), options

    return TracedViT
