"""Learned dictionaries of features: sparse autoencoders, transcoders and crosscoders on activations of vision models.

Planned here: one architecture per file, streamed training that resumes exactly, evaluation, other tools' file formats,
steering, dashboards. Nothing of it exists yet. Anything with `encode` and `decode` will count as a dictionary.
"""

__all__: list[str] = []
