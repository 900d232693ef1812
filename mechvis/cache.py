"""Captured activations of one run: a read-only mapping from site names to tensors.

Values are not copied when they are captured (that would double the memory of a run), so a later in-place change would
corrupt them in silence. Each tensor's version counter is kept, and reading a changed tensor is an error.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mechvis.errors import CacheChanged, OutOfRange, UnknownSite, nearest
from mechvis.graph import HookGraph

_SHORT = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "result": "attn.hook_result",
    "pattern": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
    "pre": "mlp.hook_pre",
    "post": "mlp.hook_post",
}


def version_of(value: Tensor) -> int:
    """Counter of in-place changes; 0 for tensors made in inference mode, which keep none."""
    return 0 if value.is_inference() else value._version


class Cache(Mapping[str, Tensor]):
    """Captured activations by canonical name, native module path, or `(short name, layer)`.

    Example:
        >>> run.cache["blocks.3.attn.hook_z"] is run.cache["z", 3]        # doctest: +SKIP
        True
    """

    def __init__(self, graph: HookGraph):
        self._graph = graph
        self._tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def _put(self, name: str, value: Tensor) -> None:
        self._tensors[name] = value
        self._versions[name] = version_of(value)

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        name = self._name(key)
        if name not in self._tensors:
            have = nearest(name, self._tensors)
            raise UnknownSite(
                f"{name!r} was not captured in this run. Captured: {', '.join(have) or 'nothing'}"
                f"{' ...' if len(self) > len(have) else ''}. Add it to capture=[...]."
            )
        value = self._tensors[name]
        if version_of(value) != self._versions[name]:
            raise CacheChanged(
                f"the captured tensor {name!r} was changed in place after it was captured. "
                "Work on a copy: cache[...].clone()."
            )
        return value

    def _name(self, key: str | tuple[str, int]) -> str:
        if isinstance(key, tuple):
            short, layer = key
            if short not in _SHORT:
                raise UnknownSite(f"no short name {short!r}; nearest: {', '.join(nearest(str(short), _SHORT))}.")
            n_layers = self._graph.n_layers
            if not -n_layers <= layer < n_layers:
                raise OutOfRange(f"layer {layer} in {key!r}: this model has layers 0 to {n_layers - 1}.")
            return self._graph.resolve(f"blocks.{layer % n_layers}.{_SHORT[short]}")
        return self._graph.resolve(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def n_bytes(self) -> int:
        """Memory held, in bytes (shared storage counted once)."""
        return sum(
            {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._tensors.values()}.values()
        )

    def to_tl_cache(self, model: Any) -> Any:
        """A transformer_lens `ActivationCache` over the same tensors."""
        from mechvis.interop.transformer_lens import ImageCache

        return ImageCache(dict(self), model)

    def __repr__(self) -> str:
        lines = [f"Cache: {len(self)} sites, {self.n_bytes / 2**20:.1f} MiB"]
        for name, value in self._tensors.items():
            axes = self._graph[name].axes
            lines.append(
                f"  {name:<36} [{' '.join(f'{a}={s}' for a, s in zip(axes, value.shape, strict=True))}] "
                f"{str(value.dtype).removeprefix('torch.')}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from mechvis.show import cache, safely

        return safely(cache, self)
