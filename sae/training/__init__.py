"""Training: settings, the step, the optimiser, checkpoints, the log, and the loop over all of them."""

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "train": "sae.training.train",
        "Trained": "sae.training.train",
        "Training": "sae.training.settings",
        "Job": "sae.training.job",
        "Learner": "sae.training.job",
        "wandb_tracker": "sae.training.log",
    },
)
