"""Small operations with a plain twin each. `<op>/naive.py` is the truth; a Triton twin may stand beside it."""
