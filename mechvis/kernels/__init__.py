"""Small operations with a plain twin each. `<op>/naive.py` is the truth; a Triton twin stands beside it, and
`dispatch.py` is the rule that picks one. What each does: `docs/kernels.md`."""
