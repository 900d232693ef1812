"""Training beyond one process, under `torchrun`: shares of the batch, shares of the latents, checkpoints of parts.

    team, shards = sae.parallel.join(shards=2)      # 8 processes: 4 shares of the batch, 2 of the latents
    sae.train(rows, architecture, settings, out="runs/sae", team=team, shards=shards)

* `join`: who this process is. `team`: all processes share the batch. `leave`: at the end.
"""

from mechvis.lazy import publish

__all__ = publish(__name__, {"join": "sae.parallel.join", "team": "sae.parallel.team", "leave": "sae.parallel.team"})
