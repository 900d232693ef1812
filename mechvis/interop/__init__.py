"""Bridges to tools people already use: transformer_lens, nnsight, captum. Each imports its package only when used."""
