"""How the planted models were trained: `python -m mechvis.testing.trained.build` runs it again."""
