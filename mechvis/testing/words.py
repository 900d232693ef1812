"""A tokenizer for tiny two-tower models: no files, every text gets its own ids."""

import torch
from torch import Tensor

from mechvis.testing.tiny import tiny


class Words:
    """Stands in for a tokenizer of `tiny("clip")`: ids from the letters of each word, then the end-of-text token."""

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text."""
        return [2 + sum(map(ord, word)) % 40 for word in text.split()]

    def __call__(self, texts: list[str], **settings: object) -> dict[str, Tensor]:
        """Token ids `[row token]`, padded to ten."""
        end = tiny("clip-text").config.eos_token_id
        ids = torch.full((len(texts), 10), 1)
        for row, text in enumerate(texts):
            known = [*self.encode(text), end]
            ids[row, : len(known)] = torch.tensor(known)
        return {"input_ids": ids}
