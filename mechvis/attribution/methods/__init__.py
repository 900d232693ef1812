"""One attribution method a file; `mechvis.attribution.METHODS` lists them by name."""
