"""What the columns of a record of probes mean, and how far to believe them."""

MEASURES = {"classes": "accuracy", "labels": "share of right labels", "numbers": "R^2"}

WORDS = {
    "features": "site and choice of tokens",
    "score": "of the task on held-out images: accuracy, share of right labels, or R^2 (facts: measure); _low, _high: "
    "95 % bootstrap interval over images",
    "n": "held-out images",
    "train_score": "the same on the training rows; far above `score` means that the probe has overfitted",
    "weight_decay": "chosen by the validation loss; in units of the mean loss on standardised features",
    "control": "score where each image has a random label, at the same capacity",
    "selectivity": "score - control, paired over images",
    "type_control": "score where each group of images (types=) has a random label",
    "type_selectivity": "score - type_control, paired over images",
    "bits": "online code length of the training and validation labels",
    "compression": "n log2 C / bits: above 1 the labels can be read, below 1 they cannot",
    "random_model": "score of the same probe on a randomly initialised copy of the model",
    "above_random": "score - random_model, paired over images",
    "rank": "of the probe; empty: all directions",
    "converged": "whether the solver reached its tolerance",
}

CAVEATS = (
    "A probe shows that something can be read at a layer, not that the model uses it: erase the probe's directions and "
    "look at the model's own output (probes.linear.erase).",
    "Scores depend on the choice of tokens, the number of training images and the weight decay; compare layers within "
    "one record only.",
    "Weight decays were chosen on validation images; intervals are over test images and leave out the training draw.",
)
