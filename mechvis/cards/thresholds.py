"""Thresholds of the gates, in one place and with a version: a card says which it was judged by.

They were set so that known-bad explainers fail and exact ones pass (measured: benchmarks/gates.md), not so that a
favourite passes.
"""

VERSION = 1

NO_OP = 1e-6
"""G1: largest change of a score by an edit that changes nothing, relative to the spread of scores."""
COMPLETE = 0.01
"""G2: median of |sum - difference of scores| / |difference| (1 % for integrated gradients at 64 steps)."""
RANDOM_WEIGHTS = 0.6
"""G3: mean rank correlation with the explanation of a model with random weights must be below."""
OTHER_TARGET = 0.95
"""G4: mean rank correlation with the explanation of another class must be below."""
BATCH = 1e-3
"""G5: largest change when examples are explained alone, or in another order, relative to the largest number."""
SEEDS = 0.9
"""G5: mean correlation between two seeds must be above (methods2.md 20.3, there by rank)."""
PRIOR_MARGIN = 0.1
"""G6: by which share of its own advantage over a random map a prior may be better than an explanation: where what is
conspicuous is what decides, exact maps trail the prior by a hundredth of the area."""
PLANTED = 0.85
"""G7a: mean AUROC on the planted suites must be at least."""
CONTEST = 0.7
"""G7b: mean AUROC of true patches against decoys alone must be at least."""
FRESH = 0.6
"""G9: rank correlation of effects with those measured on other images must be above."""
EXCLUDED = 0.05
"""Share of undefined examples beyond which a block is called unreliable."""
