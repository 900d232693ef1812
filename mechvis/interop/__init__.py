"""Bridges to tools people already use: transformer_lens, nnsight, captum. Each is imported when used."""

from mechvis.lazy import publish

__all__ = publish(__name__, {}, ("captum", "nnsight", "transformer_lens"))
