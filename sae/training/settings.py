"""How a dictionary is trained: one value, kept in its file, that a resumed run has to repeat."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from mechvis.errors import BadData, unknown


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a run.

    Raises:
        BadData: settings that cannot be.

    Example:
        >>> Training(tokens=1_000_000, batch=4096).steps
        244
    """

    tokens: int = 50_000_000
    """Rows to train on; they may come more than once."""
    batch: int | None = None
    """Rows per step, over all processes; None: a power of two, 256 to 8192, for a thousand steps or more."""
    lr: float | None = None
    """Learning rate; None: 2e-4 / √(n / 2¹⁴), which follows the number of latents (2406.04093)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    eps: float = 1e-8
    """Of Adam."""
    lr_warm_up: int = 1000
    """Steps in which the learning rate rises from 0; at most a tenth of the run."""
    decay: float = 0.2
    """Last share of the run, in which the learning rate falls linearly to 0."""
    sparsity_warm_up: float = 0.05
    """First share of the run, in which sparsity terms rise linearly from 0."""
    k_start: float = 1.0
    """k starts at that many times its value ..."""
    k_steps: int = 0
    """... and falls to it linearly in that many steps."""
    clip: float | None = 1.0
    """Largest norm of a step's gradient; None: not clipped."""
    ema: float | None = None
    """Decay of an average of the weights, which is what is saved in the end; None: the weights themselves."""
    dead_after: int = 10_000_000
    """A latent that has not fired for that many rows is dead; at most a tenth of the run."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the encoder's product. With bfloat16, weights and what is kept stay in float32."""
    fast: bool = True
    """Compute over active latents alone; False: the plain twin."""
    init_rows: int = 16_384
    """Rows that scales and starting values are measured on."""
    seed: int = 0
    """Of the starting values, and of the order where the source has none of its own."""
    log_every: int = 100
    """Steps between lines of the log."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints that are kept."""
    look_every: int = 10
    """Steps between looks at how many latents are dead: the only time when a step waits for the device."""

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.batch is None:
            # 8192 rows a step make 122 steps of a million rows, too few to learn from: mean cosine to planted atoms
            # .857 where 1024 rows a step give .993, at equal rows.
            steps = max(1, self.tokens // 1000)
            object.__setattr__(self, "batch", min(8192, max(256, 1 << (steps.bit_length() - 1))))
        least = {"tokens": self.batch, "batch": 1, "log_every": 1, "save_every": 1, "keep": 1, "look_every": 1,
                 "lr_warm_up": 0, "k_steps": 0, "dead_after": 1, "init_rows": 1}  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise BadData(f"{name}={getattr(self, name)}: at least {low}.")
        shares = {"decay": self.decay, "sparsity_warm_up": self.sparsity_warm_up}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise BadData(f"{name}={value} is a share of the run, between 0 and 1.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadData(f"{name}={value}: above zero, or None.")
        if self.k_start < 1 or not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0:
            raise BadData(f"k_start={self.k_start}, betas={self.betas}, eps={self.eps} cannot be.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise BadData(f"ema={self.ema} is a decay between 0 and 1, or None.")
        if self.precision not in ("float32", "bfloat16"):
            raise unknown("precision", self.precision, ("float32", "bfloat16"))

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.tokens // self.batch

    def learning_rate(self, n_latents: int) -> float:
        """The learning rate of a dictionary of this size, before the schedule."""
        return self.lr if self.lr is not None else 2e-4 / (n_latents / 2**14) ** 0.5

    def lr_at(self, step: int) -> float:
        """Factor on the learning rate."""
        warm = min(self.lr_warm_up, self.steps // 10)
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        last = self.decay * self.steps
        fall = min(1.0, (self.steps - step) / last) if last else 1.0
        return rise * fall

    def sparsity_at(self, step: int) -> float:
        """Factor on sparsity terms."""
        warm = self.sparsity_warm_up * self.steps
        return min(1.0, (step + 1) / warm) if warm else 1.0

    def k_at(self, step: int) -> float:
        """Factor on k."""
        if step >= self.k_steps:
            return 1.0
        return self.k_start + (1 - self.k_start) * step / self.k_steps

    @property
    def dead_tokens(self) -> int:
        """Rows without firing that make a latent dead in this run."""
        return max(self.batch, min(self.dead_after, self.tokens // 10))

    def to_json(self) -> dict[str, Any]:
        """For files."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Self:
        """From a file.

        Raises:
            BadData: an unknown setting.
        """
        fields = {f.name for f in dataclasses.fields(cls)}
        if strange := sorted(set(known) - fields):
            raise BadData(f"training has no setting {strange[0]!r}; it has {', '.join(sorted(fields))}.")
        return cls(**known)
