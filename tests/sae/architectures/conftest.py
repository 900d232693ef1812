"""Tiny dictionaries of every architecture, in float64, for tests of gradients: a new entry of `NAMES` is tested too.

`dictionary_case` runs a test once per architecture, settings, ends, decoder and normaliser, `unit_case` for decoders
with rows of norm one. What an architecture needs
to be small stands in `SETTINGS`; what it refuses, in `REFUSED`, and that it does so is tested too.
"""

from dataclasses import dataclass, field

import pytest
import torch

import sae
from sae.architecture import Step
from sae.architectures import NAMES, named
from sae.training.optimiser import renormalise_

N_ROWS, N_LATENTS, D = 32, 96, 8
WIDTHS = {"a": D, "b": 6, "c": D, "d": 6}

SETTINGS = {
    "relu": {"": {"l1": 0.3, "aux": 0.2}, "not_centred": {"l1": 0.3, "centre": False}},
    "gated": {"": {"l1": 0.3, "aux": 0.2}},
    "p_anneal": {"": {"sparsity": 0.3, "aux": 0.2}},
    "jumprelu": {
        "l0": {"penalty": "l0", "sparsity": 0.3, "aux": 0.2, "bandwidth": 0.05},
        "log": {"penalty": "l0", "sparsity": 0.3, "log_threshold": True, "bandwidth": 0.05},
        "target": {"penalty": "target", "l0": 3.0, "bandwidth": 0.05, "to_input": True},
        "quadratic": {"penalty": "quadratic", "l0": 3.0, "bandwidth": 0.05},
        "tanh": {"penalty": "tanh", "to_input": True, "pre_act": 0.2, "aux": 0.2, "bandwidth": 0.05},
    },
    "topk": {"": {"k": 3, "aux": 0.3}, "k_aux": {"k": 3, "aux": 0.3, "k_aux": 2}},
    "batch_topk": {"": {"k": 3, "aux": 0.3}, "by_type": {"k": 3, "by_type": True, "row_limit": None}},
    "matryoshka": {
        "": {"k": 3, "aux": 0.3},
        "random": {"k": 3, "prefixes": 4, "reduce": "mean", "aux_per_group": True},
    },
    "nested_k": {"": {"ks": (2, 4), "aux": 0.3}, "reverse": {"ks": (2, 4), "weights": "reverse"}},
    "matching_pursuit": {"": {"k": 3, "aux": 0.3}},
    "archetypal": {
        "": {"candidates": 16, "k": 3, "aux": 0.3},
        "batch": {"candidates": 16, "k": 3, "select": "batch_topk", "bias": True},
    },
    "universal": {"": {"k": 3}},
    "cross_layer_transcoder": {
        "": {"sparsity": 0.3, "pre_act": 0.2, "bandwidth": 0.05, "threshold_init": 0.05},
        "relu": {"sparsity": 0.3, "activation": "relu"},
        "batch_topk": {"activation": "batch_topk", "k": 3, "aux": 0.3},
        "tied": {"sparsity": 0.3, "activation": "relu", "tied": True},
    },
    "batch_topk_crosscoder": {"": {"k": 3}},
}
"""Settings by architecture and label; one that is not here is tested with its defaults."""

REFUSED = {
    "matching_pursuit": {"transcoder", "layers", "free"},
    "sparsemax": {"transcoder", "layers", "unit"},
    "universal": {"transcoder", "layers"},
    "archetypal": {"unit"},
    "cross_layer_transcoder": {"autoencoder", "crosscoder"},
}
"""Ends, decoders or normalisers that an architecture cannot have."""

GRID = [
    ("autoencoder", "unit", "mean_square"),
    ("autoencoder", "free", "mean_square"),
    ("autoencoder", "unit", "none"),
    ("autoencoder", "free", "mean_norm"),
    ("autoencoder", "unit", "token_norm"),
    ("autoencoder", "free", "layer_norm"),
    ("transcoder", "unit", "mean_square"),
    ("transcoder", "free", "mean_norm"),
    ("crosscoder", "unit", "mean_square"),
    ("crosscoder", "free", "mean_norm"),
    ("crosscoder", "free", "token_norm"),
    ("layers", "unit", "mean_square"),
    ("layers", "free", "mean_norm"),
]
"""Ends, decoder, normaliser. Transcoders, of one or two layers, have a skip connection; the crosscoder reads and writes
two sites."""

SHORT_GRID = [
    ("autoencoder", "unit", "mean_square"),
    ("crosscoder", "free", "mean_norm"),
    ("layers", "free", "mean_norm"),
]
"""For all settings of an architecture but the first."""

SITES = {
    "autoencoder": (["a"], []),
    "transcoder": (["a"], ["b"]),
    "crosscoder": (["a", "b"], []),
    "layers": (["a", "c"], ["b", "d"]),
}
"""Sites that are read and written."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An architecture as it is tested."""

    name: str
    label: str = ""
    ends: str = "autoencoder"
    decoder: str = "unit"
    normalise: str = "mean_square"
    settings: dict = field(default_factory=dict)

    def __str__(self):
        words = [f"{self.name}_{self.label}" if self.label else self.name, self.ends, self.decoder, self.normalise]
        return "-".join(words)

    @property
    def refused(self) -> bool:
        """Is this what it cannot have?"""
        return bool(REFUSED.get(self.name, set()) & {self.ends, self.decoder, self.normalise})

    def architecture(self, **changes):
        """Its settings."""
        known = {"n_latents": N_LATENTS, "decoder": self.decoder, "normalise": self.normalise}
        known["skip"] = self.ends in ("transcoder", "layers")
        return named(self.name)(**{**known, **self.settings, **changes})

    def rows(self, seed: int = 0, n: int = N_ROWS) -> dict[str, torch.Tensor]:
        """Activations by site: off centre, of unequal norms."""
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        shared = normal(n, 5) * (0.5 * normal(n, 1)).exp()
        mixing = torch.Generator().manual_seed(99)
        found = {}
        for site, width in WIDTHS.items():
            mix = torch.randn(5, width, generator=mixing, dtype=torch.float64)
            found[site] = shared @ mix + 0.3 * normal(n, width) + 0.5 * torch.arange(width) / width
        reads, writes = SITES[self.ends]
        return {site: found[site] for site in [*reads, *writes]}

    def start(self, **changes):
        """Untrained, as the architecture says."""
        reads, writes = SITES[self.ends]
        rows = self.rows()
        return sae.start(self.architecture(**changes), rows, reads=reads, writes=writes or None, seed=1)

    def dictionary(self, *, active: float = 0.03, **changes):
        """Somewhere in training: every parameter moved, and a known share of latents active where that is free."""
        d = self.start(**changes)
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in d.parameters():
                p += 0.15 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
            if d.architecture.decoder == "unit":
                for name in d.architecture.UNIT:
                    if hasattr(d, name):
                        renormalise_(getattr(d, name))
            d.architecture.before(d, Step())
            if self.name == "p_anneal":
                d.level.fill_(3)
                d.factor.fill_(1.3)
            quieten(self.name, d, d.normalised(self.rows())[0], active)
        return d


def quieten(name: str, d, x: torch.Tensor, active: float) -> None:
    """Move biases so that each latent is active on a share of the rows."""
    a = d.architecture
    if name == "gated":
        least = a.gates(d, x, fast=False).pre.quantile(1 - active, dim=0)
        d.b_gate -= least
        d.b_mag -= least - 0.1  # magnitudes follow, but not quite
    elif name in ("relu", "p_anneal", "crosscoder", "jumprelu"):
        least = d.encoder(x, fast=False).pre.quantile(1 - active, dim=0)
        d.b_enc -= least - (a.thresholds(d) if name == "jumprelu" else 0)
    elif name == "cross_layer_transcoder":
        pre = torch.cat([e.pre for e in a.encoders(d, x, fast=False)], dim=1)
        d.b_enc -= pre.quantile(1 - active, dim=0) - getattr(d, "threshold", 0)


def step(**changes) -> Step:
    """A moment of training, with some dead latents (the host knows of more than there are by now)."""
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[::24] = True
    types = torch.arange(N_ROWS) % 3
    known = {
        "number": 12,
        "progress": 0.3,
        "sparsity": 0.7,
        "dead": dead,
        "n_dead": int(dead.sum()) + 2,
        "types": types,
    }
    return Step(**{**known, **changes})


def cases() -> list[Case]:
    """Every architecture that is trained, in every form that is tested."""
    names = [name for name, place in NAMES.items() if place.startswith("sae.architectures.")]
    return [
        Case(name=name, label=label, settings=settings, ends=ends, decoder=decoder, normalise=normalise)
        for name in names
        for number, (label, settings) in enumerate(SETTINGS.get(name, {"": {}}).items())
        for ends, decoder, normalise in (GRID if number == 0 else SHORT_GRID)
    ]


def pytest_generate_tests(metafunc):
    wanted = {
        "dictionary_case": lambda case: not case.refused,
        "unit_case": lambda case: not case.refused and case.decoder == "unit",
        "refused_case": lambda case: case.refused,
    }
    for fixture in wanted.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(fixture, [case for case in cases() if wanted[fixture](case)], ids=str)


@pytest.fixture(scope="session")
def make_case():
    """One case by hand: `make_case("topk", decoder="free", k=3)`."""

    def make(name, *, ends="autoencoder", decoder="unit", normalise="mean_square", **settings):
        return Case(name=name, ends=ends, decoder=decoder, normalise=normalise, settings=settings)

    return make


@pytest.fixture(scope="session")
def make_step():
    """A moment of training with some dead latents: `make_step(fast=False)`."""
    return step
