"""What one forward pass carries with it: edits to apply, sites to capture, and a record of what fired.

The state of a run lives in a ContextVar, not on any module: two threads, or two notebook cells, cannot see each
other's edits, and an exception leaves nothing behind.
"""

import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mechvis import plan as planning
from mechvis.cache import Cache
from mechvis.edits import Edit
from mechvis.errors import EditNeverFired, EffectlessEdit, MechvisError, NotFinite
from mechvis.models.parts import TowerParts
from mechvis.plan import Plan


@runtime_checkable
class Watcher(Protocol):
    """Somebody who looks at every site while the forward pass runs, and may change what goes on from there."""

    def wants(self, name: str) -> bool:
        """Is a site that is computed on demand (scores, pattern, head results, norm scales) wanted now?"""
        ...

    def visit(self, name: str, x: Tensor) -> Tensor:
        """The activation as it goes on."""
        ...


class AllCaptured(Exception):
    """Ends a forward pass that has shown everything that was asked of it; never leaves :meth:`HookedViT.run`."""

    def __init__(self, site: str, value: Tensor):
        super().__init__(site)
        self.site, self.value = site, value


@dataclass
class Active:
    """The run that is in progress in this context."""

    plan: Plan
    capture: frozenset[str]
    cache: Cache
    owner: object
    """The tower the run belongs to: another wrapped model called inside it must not see these edits."""
    keep_graph: bool
    check_finite: bool = True
    watcher: Watcher | None = None
    """Called at every site, after the edits; no block takes the plain path then."""
    stop_when_captured: bool = False
    """End the pass at the last of the captured sites."""
    fired: dict[str, int] = field(default_factory=dict)
    changed: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self):
        self.sites = self.plan.sites | self.capture
        graph = self.plan.graph
        self.layers = frozenset(graph.sites[name].layer for name in self.sites)

    def edits_at(self, name: str) -> bool:
        """Is there an edit here?"""
        return name in self.plan.at

    def wants(self, name: str) -> bool:
        """Is anything done here?"""
        return name in self.sites or (self.watcher is not None and self.watcher.wants(name))

    def looks_at(self, name: str) -> bool:
        """Does somebody want to see the value here (and with a graph, its gradient)?"""
        return name in self.capture or (self.watcher is not None and self.watcher.wants(name))

    def enters(self, layer: int) -> bool:
        """Is anything done inside this block?"""
        return self.watcher is not None or layer in self.layers

    def watched_by(self, watcher: Watcher) -> "Active":
        """The same run with a watcher; both count the same edits as fired."""
        return replace(self, watcher=watcher)

    def edit(self, name: str, x: Tensor) -> Tensor:
        """The activation after this site's edits."""
        if name not in self.plan.at:
            return x
        new = planning.apply(self.plan, name, x)
        self.fired[name] = self.fired.get(name, 0) + 1
        self.changed[name] = self.changed.get(name, False) or not torch.equal(new.detach(), x.detach())
        return new

    def seen(self, name: str, x: Tensor) -> Tensor:
        """Show the activation to the watcher, keep it if it was asked for, hand it on."""
        if self.watcher is not None:
            x = self.watcher.visit(name, x)
        if name not in self.capture:
            return x
        if self.check_finite and not torch.isfinite(x.detach().sum()):
            allowed = name.endswith("hook_attn_scores")  # -inf marks future keys in causal towers
            bad = torch.isnan(x) if allowed else ~torch.isfinite(x)
            if bad.any():
                rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
                raise NotFinite(
                    f"{name}: {int(bad.sum())} NaN or Inf values, first in row(s) {rows[:5]}. "
                    "Look at the input and at earlier sites; pass check_finite=False to capture anyway."
                )
        self.cache._put(name, x if self.keep_graph else x.detach())
        if self.stop_when_captured and len(self.cache) == len(self.capture):
            raise AllCaptured(name, x)
        return x

    def finish(self, stacklevel: int = 3) -> None:
        """Raise or warn about edits that did not do what they say; by default at the caller of the caller."""
        silent = [name for name in self.plan.at if name not in self.fired]
        if silent:
            edit = self.plan.at[silent[0]][0]
            raise EditNeverFired(
                f"{edit!r} never fired: the forward pass did not reach {', '.join(silent[:3])}. "
                "A stop_at or start_at before or after it, or a model called without it?"
            )
        missing = [name for name in self.capture if name not in self.cache]
        if missing:
            raise EditNeverFired(
                f"nothing was captured at {', '.join(sorted(missing)[:3])}: the forward pass did not "
                "reach it (stop_at, start_at?)."
            )
        for name, changed in self.changed.items():
            if not changed:
                warnings.warn(
                    f"{self.plan.at[name][0]!r} changed nothing at {name}: the values were already so.",
                    EffectlessEdit,
                    stacklevel=stacklevel,
                )

    def _matches(self, edit: Edit) -> int:
        return sum(any(edit is other for other in found) for found in self.plan.at.values())

    def warn_unreachable(self, parts: TowerParts) -> None:
        """Warn about edits in the last block at tokens that are not read: they cannot change the output."""
        if not isinstance(parts.reads, tuple):
            return
        last = f"blocks.{len(parts.blocks) - 1}."
        for name, edits in self.plan.at.items():
            place = name.removeprefix(last).removesuffix(".hook_latents").removesuffix(".hook_error")
            if not name.startswith(last) or place in _MIXES_TOKENS:
                continue
            # A pattern that also hits earlier layers means what it says; only an edit that does nothing else is told.
            for edit in (e for e in edits if self._matches(e) == 1):
                tokens = planning.fixed_tokens(edit, parts.prefix, parts.n_tokens)
                if tokens is not None and not tokens & set(parts.reads):
                    warnings.warn(
                        f"{edit!r} cannot change the output: after the last attention, token {min(tokens)} is not read "
                        f"(the read-out takes token {', '.join(map(str, parts.reads))}).",
                        EffectlessEdit,
                        stacklevel=4,
                    )


_MIXES_TOKENS = ("hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_k", "attn.hook_v")
"""Sites of a block from which a token still reaches other tokens."""

ACTIVE: ContextVar[Active | None] = ContextVar("mechvis_active_run", default=None)


@dataclass(frozen=True)
class Run:
    """What a run returns."""

    output: Tensor
    """Logits if the model has a head, else the embedding, else the pooled tokens; the stream if stopped early."""
    cache: Cache
    """Captured activations."""
    edits: tuple[Edit, ...] = ()
    """What was done."""
    output_site: str = "hook_logits"
    """Which of these `output` is."""

    @property
    def logits(self) -> Tensor:
        """The head's output `[row class]`.

        Raises:
            MechvisError: the model has no head, or the run stopped before it.
        """
        if self.output_site != "hook_logits":
            raise MechvisError(
                f"this run ended at {self.output_site}; it has no logits. Use .output, or give the model "
                "a head (for CLIP: clip.classifier(class_names))."
            )
        return self.output

    @property
    def embedding(self) -> Tensor:
        """The image or text embedding `[row d_embed]` of a model without a head."""
        if self.output_site not in ("hook_embedding", "hook_pooled"):
            raise MechvisError(
                "capture 'hook_embedding' (or 'hook_pooled') to see the embedding of a model with a head."
            )
        return self.output

    def __repr__(self) -> str:
        done = f", {len(self.edits)} edits" if self.edits else ""
        return f"Run({self.output_site} {list(self.output.shape)}, {len(self.cache)} captured{done})"

    def _repr_html_(self) -> str:
        from mechvis.show import run, safely

        return safely(run, self)


def check_sites(names: Sequence[str], graph) -> frozenset[str]:
    """Canonical names for a list of capture patterns."""
    return frozenset(graph.match(names)) if names else frozenset()
