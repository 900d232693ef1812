"""Read-outs that look and change nothing: what can be read from a model's activations, and how far to believe it.

Planned here: linear probes, decision timelines over layers, logit lenses, text-span decomposition of CLIP heads,
second-order neurons, sparse text codes, neuron labels, concept faithfulness. Nothing of it exists yet. What does
exist: activations to probe (`mechvis.HookedViT.run(..., capture=...)`) and causal studies (`circuits`).
"""

__all__: list[str] = []
