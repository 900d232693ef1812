"""Models in: one entrance (`load`), what a family must offer (`parts`), one file per source of models."""
