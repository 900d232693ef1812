"""What must hold for every model family, as one call: for our own maps and for one that you add.

The bare model is the judge wherever it can be: outputs, gradients, its own modules' outputs, its weights set to zero.
Each check names what is wrong in terms of the map (see `mechvis.models.parts`), so that a failure says where to look.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn

from mechvis import block as plain
from mechvis.edits import zero
from mechvis.models.load import wrap
from mechvis.models.parts import AttentionParts, TowerParts
from mechvis.testing.untouched import assert_untouched
from mechvis.units import Unit, units_of
from mechvis.wave import wave

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Largest difference that counts as rounding, relative to the largest expected value."""


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """What was measured on one tower; every number is a largest difference relative to the largest expected value."""

    family: str
    """Name of the map."""
    outputs: float
    """Output of the wrapped model against the bare one's, the worse of with and without a graph."""
    hooked: float
    """The same with every site captured, attention computed explicitly."""
    gradients: float
    """Gradients of input and parameters, with nothing captured."""
    sites: int
    """Number of sites; every one fired once with its declared shape."""
    native: int
    """Native module paths whose outputs in the bare model equal the site they stand for."""
    head_sum: float
    """Sum of the heads' results plus bias against the attention's write."""
    zero_head: float | None
    """Zeroing a head by edit against zeroing its rows of W_O in the model; None: no access to the weight (adapters)."""
    wave: float | None
    """Sweep of heads, writes, neurons and tokens by the wave front against one forward per unit; None: text."""
    other_size: tuple[int, int] | None = None
    """Height and width of the second image size that was tried; None: the upstream takes one only."""
    other_outputs: float | None = None
    """Output against the bare model's at that size."""

    def row(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def check_family(
    bare: nn.Module,
    *,
    family: Callable[[nn.Module], TowerParts] | None = None,
    preprocess: Any = None,
    other_size: tuple[int, int] | None = None,
    inputs: Tensor | None = None,
    tolerance: float | None = None,
) -> list[Conformance]:
    """Check everything that mechvis promises of a model family, on a model in eval mode (small and random is best: all
    biases non-zero, all gains away from one).

    Args:
        bare: the foreign model.
        family: its map; None: the one that `mechvis.load` finds.
        preprocess: as for `mechvis.load`; without it no image processor is attached.
        other_size: a second (height, width) to try; by default two patches higher and one wider than the model's own.
            A family whose upstream takes one size only is checked to refuse it.
        inputs: pixels or token ids to use; by default random ones.
        tolerance: what counts as rounding; by default `TOLERANCE` of the model's type.

    Returns:
        one `Conformance` per tower.

    Raises:
        AssertionError: says what does not hold, and where.

    Example:
        >>> from mechvis.testing import check_family, tiny
        >>> check_family(tiny("vit"))[0].sites
        59
    """
    with assert_untouched(bare):
        copied = copy.deepcopy(bare)  # weights are set to zero in it
        wrapped = _wrap(copied, family, preprocess)
        found = []
        for name, tower in _towers(wrapped):
            given = inputs if len(_towers(wrapped)) == 1 else None
            x = tower.parts.example_batch(copied, torch.Generator().manual_seed(1)) if given is None else given
            allowed = TOLERANCE[tower.dtype] if tolerance is None else tolerance
            measured = _check_tower(tower, x, allowed)
            if tower.parts.modality == "image":
                measured |= _check_other_size(copied, name, tower, family, preprocess, other_size, allowed)
            found.append(Conformance(family=tower.parts.family, **measured))
        quiet = _wrap(bare, family, preprocess)
        for _, tower in _towers(quiet):
            tower.run(tower.parts.example_batch(bare, torch.Generator().manual_seed(1)), capture="*")
            assert not list(nn.Module.named_parameters(tower)) and not list(nn.Module.named_buffers(tower)), (
                "the wrapped model holds parameters of its own: parts must call the user's modules, not copy them"
            )
    return found


def _wrap(bare: nn.Module, family: Any, preprocess: Any, **more: Any) -> Any:
    import warnings

    from mechvis.errors import DefaultPreprocessing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefaultPreprocessing)
        return wrap(bare, family=family, preprocess=preprocess, **more)


def _towers(wrapped: Any) -> list[tuple[str, Any]]:
    return (
        [("vision", wrapped.vision), ("text", wrapped.text)]
        if hasattr(wrapped, "vision") and hasattr(wrapped, "text")
        else [("", wrapped)]
    )


def _check_tower(model: Any, x: Tensor, tolerance: float) -> dict[str, Any]:
    cache = _check_sites(model, x)
    outputs, hooked = _check_outputs(model, x, tolerance)
    measured = {
        "outputs": outputs,
        "hooked": hooked,
        "gradients": _check_gradients(model, x, tolerance),
        "sites": len(model.graph),
        "native": _check_native_paths(model, x, cache, tolerance),
        "head_sum": _check_attention(model, cache, tolerance),
        "zero_head": _check_zero_head(model, x, tolerance),
        "wave": None,
    }
    _check_mlp(model, cache, tolerance)
    _check_restart(model, x, cache, tolerance)
    if model.parts.modality == "image":
        _check_tokens(model, x)
        measured["wave"] = _check_wave(model, x, tolerance)
    return measured


def _far(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """The largest difference relative to the largest expected value; an error above `tolerance`."""
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.isfinite(actual).all() and torch.isfinite(expected).all(), f"{what}: NaN or Inf"
    far = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    assert far <= tolerance, f"{what}: differs by {far:.2e} of the largest expected value; allowed {tolerance:.0e}"
    return far


def _check_sites(model: Any, x: Tensor) -> Any:
    """Every site exists, fires once, and has its declared shape; by transformer_lens hooks and by our own captures."""
    declared = {site.name: site for site in model.graph}
    assert set(model.hook_dict) == set(declared), (
        f"hook points and graph differ: {sorted(set(model.hook_dict) ^ set(declared))[:5]}"
    )
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        fired: dict[str, list[tuple[int, ...]]] = {}

        def note(value: Tensor, hook: Any, fired: dict = fired) -> None:
            fired.setdefault(hook.name, []).append(tuple(value.shape))

        with mode():
            model.run_with_hooks(x, fwd_hooks=[(name, note) for name in declared])
        for name, site in declared.items():
            times = len(fired.get(name, []))
            assert times == 1, f"{name} fired {times} times under {mode.__name__}, declared once"
            shape = fired[name][0]
            fits = len(shape) == len(site.sizes) and all(
                want is None or want == have for want, have in zip(site.sizes, shape, strict=True)
            )
            assert fits and shape[0] == len(x), f"{name} has shape {shape}, declared {site.axes} {site.sizes}"
    return model.run(x, capture="*").cache


def _check_outputs(model: Any, x: Tensor, tolerance: float) -> tuple[float, float]:
    found = []
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            expected = model.parts.reference(x)
            found.append(_far(model(x), expected, tolerance, f"output under {mode.__name__}"))
            every_block = model.run(x, capture="*hook_resid_post", grad=mode is torch.enable_grad).output
            found.append(_far(every_block, expected, tolerance, f"output with blocks hooked, {mode.__name__}"))
    with torch.no_grad():
        hooked = _far(model.run(x, capture="*").output, expected, tolerance, "output with every site captured")
    return max(found), hooked


def _check_gradients(model: Any, x: Tensor, tolerance: float) -> float:
    """Gradients of input and parameters, with nothing captured (the figure returned) and with every site captured."""
    parameters = {name: p for name, p in model.bare.named_parameters() if p.requires_grad and p.numel()}

    def gradients(forward: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        given = x.clone().requires_grad_() if x.is_floating_point() else x
        output = forward(given)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
        wanted = {**({"input": given} if given.requires_grad else {}), **parameters}
        found = torch.autograd.grad((output * weights).sum(), list(wanted.values()), allow_unused=True)
        return {name: g for name, g in zip(wanted, found, strict=True) if g is not None}

    expected, worst = gradients(model.parts.reference), 0.0
    size = max(float(g.abs().max()) for g in expected.values())
    for what, forward in (
        ("plain", model),
        ("with every site captured", lambda given: model.run(given, capture="*", grad=True).output),
    ):
        actual = gradients(forward)
        # Sites that are captured in between may give a gradient of zero to a parameter that upstream never touched.
        extra = [name for name in actual.keys() - expected.keys() if actual[name].abs().max() > tolerance * size]
        missing = [name for name in expected.keys() - actual.keys() if expected[name].abs().max() > tolerance * size]
        assert not extra and not missing, f"{what}: gradients reach {extra or 'nothing more'}, miss {missing}"
        for name in expected.keys() & actual.keys():
            # A key bias has a gradient of exactly zero up to rounding: measured against the largest of all gradients.
            floor = max(float(expected[name].abs().max()), 1e-2 * size)
            far = float((actual[name] - expected[name]).abs().max()) / floor
            assert far <= 10 * tolerance, f"{what}: gradient of {name} differs by {far:.2e}"
            worst = max(worst, far) if what == "plain" else worst
    return worst


def _check_native_paths(model: Any, x: Tensor, cache: Any, tolerance: float) -> int:
    """What a native module returns in the bare model is what its site holds."""
    inner = model.bare.get_base_model() if hasattr(model.bare, "get_base_model") else model.bare
    seen: dict[str, Any] = {}
    aliases = model.graph.aliases
    handles = [
        inner.get_submodule(path).register_forward_hook(
            lambda module, given, output, path=path: seen.__setitem__(path, output)
        )
        for path in aliases
    ]
    try:
        with torch.enable_grad():
            model.parts.reference(x)
    finally:
        for handle in handles:
            handle.remove()
    for path, site in aliases.items():
        assert path in seen, f"alias {path}: the bare model never calls this module, so it is no name for {site}"
        value = seen[path][0] if isinstance(seen[path], tuple) else seen[path]
        assert isinstance(value, Tensor) and value.numel() == cache[site].numel(), (
            f"alias {path} -> {site}: the module returns {getattr(value, 'shape', type(value))}, the site holds "
            f"{list(cache[site].shape)}"
        )
        _far(cache[site], value.reshape(cache[site].shape), tolerance, f"alias {path} -> {site}")
    return len(aliases)


def _attentions(model: Any) -> Iterator[tuple[str, AttentionParts, Callable | None, bool]]:
    for layer, block in enumerate(model.parts.blocks):
        yield f"blocks.{layer}.", block.attn, block.scale1, block.linear_writes
    if model.parts.pooling is not None:
        yield "pool.", model.parts.pooling.attn, None, True


@torch.no_grad()
def _check_attention(model: Any, cache: Any, tolerance: float) -> float:
    worst = 0.0
    for at, attn, scale, linear in _attentions(model):
        pattern = cache[at + "attn.hook_pattern"]
        rows = pattern.double().sum(-1)
        _far(rows, torch.ones_like(rows), max(tolerance, 1e-6), f"{at}attn.hook_pattern: sum over keys")
        mixed = at + ("attn.hook_z" if attn.after is None else "attn.hook_mix")
        again = einsum(pattern, cache[at + "attn.hook_v"], "row head q k, row k head d -> row q head d")
        _far(again, cache[mixed], tolerance, f"pattern times v against {mixed}")
        if attn.causal:
            assert not pattern.triu(1).any(), f"{at}: a causal tower looks ahead"
        result = einsum(cache[at + "attn.hook_z"], attn.out_weight(), "row t head e, head e d -> row t head d")
        bias = attn.out_bias()
        if scale is not None and linear:  # each head's write goes through LayerScale, and so does the bias
            result, bias = scale(result), None if bias is None else scale(bias.clone())
        _far(cache[at + "attn.hook_result"], result, tolerance, f"{at}attn.hook_result against z W_O")
        total = result.sum(2) if bias is None else result.sum(2) + bias
        total = total if scale is None or linear else scale(total)
        far = _far(total, cache[at + "hook_attn_out"], tolerance, f"{at}hook_attn_out against the sum of its heads")
        worst = max(worst, far)
        source = at + "ln1.hook_normalized"
        if source in cache:
            weights, biases = attn.in_weights(), attn.in_biases()
            value = einsum(cache[source], weights[2], "row t d, head d e -> row t head e")
            value = value if biases[2] is None else value + biases[2]
            _far(value, cache[at + "attn.hook_v"], tolerance, f"{at}attn.hook_v against W_V and b_V")
    return worst


@torch.no_grad()
def _check_mlp(model: Any, cache: Any, tolerance: float) -> None:
    pooling = model.parts.pooling
    halves = [(f"blocks.{layer}.", block) for layer, block in enumerate(model.parts.blocks)]
    for at, block in halves + ([("pool.", pooling.mlp)] if pooling is not None and pooling.mlp is not None else []):
        weight, bias = block.mlp_out_weight(), block.mlp_out_bias()
        out = cache[at + "mlp.hook_post"] @ weight
        out = plain.scaled(block.scale2, out if bias is None else out + bias)
        _far(out, cache[at + "hook_mlp_out"], tolerance, f"{at}hook_mlp_out against neurons times W_out")
        assert block.d_mlp == len(weight), f"{at}d_mlp is {block.d_mlp}, W_out has {len(weight)} rows"


@torch.no_grad()
def _check_zero_head(model: Any, x: Tensor, tolerance: float) -> float | None:
    """The bare model with a head's part of W_O set to zero says what zeroing that head by edit must give."""
    storages = {p.untyped_storage().data_ptr() for p in model.bare.parameters()}
    worst: float | None = None
    for index, (at, attn, *_) in enumerate(_attentions(model)):
        weight, head = attn.out_weight(), index % attn.n_heads
        if weight.untyped_storage().data_ptr() not in storages:
            continue
        kept = weight[head].clone()
        weight[head] = 0
        expected = model.parts.reference(x)
        weight[head] = kept
        edited = model.run(x, edits=[zero(at + "attn.hook_z", heads=[head])]).output
        far = _far(edited, expected, tolerance, f"zeroing head {head} at {at}attn.hook_z against zeroing it in W_O")
        worst = far if worst is None else max(worst, far)
    return worst


@torch.no_grad()
def _check_restart(model: Any, x: Tensor, cache: Any, tolerance: float) -> None:
    """The stream before each block leads to the same output."""
    if model.parts.modality == "text":
        return
    expected = model(x)
    size = tuple(x.shape[2:])
    for layer in range(1, len(model.parts.blocks) + 1):
        stream = cache[f"blocks.{layer}.hook_resid_pre" if layer < len(model.parts.blocks) else _last_stream(model)]
        again = model.run(stream, start_at_layer=layer, size=size).output
        _far(again, expected, tolerance, f"restart at layer {layer}")


def _last_stream(model: Any) -> str:
    return f"blocks.{len(model.parts.blocks) - 1}.hook_resid_post"


@torch.no_grad()
def _check_tokens(model: Any, x: Tensor) -> None:
    """A patch of the image reaches its own token and no other, and no prefix token."""
    parts, before = model.parts.at_size(tuple(x.shape[2:])), model.run(x, capture="hook_embed").cache["hook_embed"]
    (down, across), (high, wide), n_prefix = parts.grid, parts.patch_size, len(parts.prefix)
    assert before.shape[1] == n_prefix + down * across == parts.n_tokens, (
        f"{before.shape[1]} tokens, but prefix {parts.prefix} and a grid of {down} x {across} patches"
    )
    for row, column in {(0, 0), (0, across - 1), (down - 1, 0), (down // 2, across // 2), (down - 1, across - 1)}:
        changed = x.clone()
        changed[:, :, row * high : (row + 1) * high, column * wide : (column + 1) * wide] += 1
        after = model.run(changed, capture="hook_embed").cache["hook_embed"]
        moved = (after != before).any(2).any(0).nonzero().flatten().tolist()
        assert moved == [n_prefix + row * across + column], (
            f"patch ({row}, {column}) of a {down} x {across} grid moves tokens {moved} of the embedding, expected "
            f"[{n_prefix + row * across + column}] after the prefix {parts.prefix}"
        )


@torch.no_grad()
def _check_wave(model: Any, x: Tensor, tolerance: float) -> float:
    """The fast sweep against one forward per unit, with zero and with foreign values."""
    worst = 0.0
    every = {kind: units_of(model, kind) for kind in ("heads", "result", "attn_out", "mlp_out", "neurons", "tokens")}
    every["patches"] = [unit for layer in range(len(model.parts.blocks)) for unit in _two_groups(model, layer)]
    if model.parts.pooling is not None:
        every["pool_heads"] = units_of(model, "pool_heads")
    for kind, units in every.items():
        units = units if len(units) <= 12 else units[:: max(1, len(units) // 12)]
        sites = sorted({unit.site for unit in units})
        other = model.run(x.flip(0) * 0.7 + 0.1, capture=sites).cache
        for name, replacement in (("zero", lambda site: None), ("patch", other.__getitem__)):
            clean, edited = wave(model.parts, x, units, replacement, at_once=max(1, len(x)))
            _far(clean, model(x), tolerance, f"clean rows of a sweep over {kind}")
            for unit, row in zip(units, edited, strict=True):
                values = replacement(unit.site)
                edit = unit.edit("zero") if values is None else unit.edit("patch", values={unit.site: values})
                expected = _quiet_run(model, x, edit)
                worst = max(worst, _far(row, expected, tolerance, f"sweep: {name} {unit.name}"))
    return worst


def _two_groups(model: Any, layer: int) -> list[Unit]:
    """Every other patch, and the rest with the prefix."""
    patches = range(len(model.parts.prefix), model.parts.n_tokens)
    rest = (*range(len(model.parts.prefix)), *patches[1::2])
    return [
        Unit(layer, "patches", i, name, tuple(t)) for i, (name, t) in enumerate({"a": patches[::2], "b": rest}.items())
    ]


def _quiet_run(model: Any, x: Tensor, edit: Any) -> Tensor:
    import warnings

    from mechvis.errors import EffectlessEdit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EffectlessEdit)
        return model.run(x, edits=[edit]).output


def _check_other_size(
    bare: nn.Module, name: str, tower: Any, family: Any, preprocess: Any, size: Any, tolerance: float
) -> dict[str, Any]:
    """A second image size: the same checks there, or a refusal."""
    from mechvis.errors import MechvisError

    parts = tower.parts
    if size is None:
        (high, wide), (patch_high, patch_wide) = parts.image_size, parts.patch_size
        size = (high + 2 * patch_high, wide + patch_wide)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, parts.channels, *size, generator=generator).to(tower.device, tower.dtype)
    if parts.sizes != "any":
        try:
            tower.run(x)
        except MechvisError:
            pass
        else:
            raise AssertionError(f"images of {size} pixels were taken without having been asked for")
    if parts.sizes == "one":
        return {}
    if parts.sizes == "any":
        with torch.no_grad():
            _far(tower.run(x).output, parts.reference(x), tolerance, f"images of {size} pixels as they come")
    wrapped = _wrap(bare, family, preprocess, image_size=size)
    sized = getattr(wrapped, name) if name else wrapped
    measured = _check_tower(sized, x, tolerance)
    return {"other_size": tuple(size), "other_outputs": measured["outputs"]}
