"""One planted variant a file; `mechvis.testing.evidence.VARIANTS` lists them by name."""
