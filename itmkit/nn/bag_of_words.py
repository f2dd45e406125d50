"""A text encoder without word order: the baseline."""

from __future__ import annotations

from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.nn.contract import Tokens
from itmkit.nn.functional import check_ids


class BagOfWords(nn.Module):
    """Word embeddings and nothing else: a caption is the set of its words.

    Args:
        vocab_size: number of word ids.
        dim: width D of the tokens.
        dropout: dropout on the embeddings, in [0, 1).

    Shape:
        - ids: ``(B, L)`` int64
        - mask: ``(B, L)`` bool, True on real words
        - output: tokens ``(B, L, D)``, zero on padding, and ``mask``

    Raises:
        InputError: a wrong size, an id outside the vocabulary, or a mask that does not fit ``ids``.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2, 0]])
        >>> BagOfWords(10, 8)(ids, ids > 0)[0].shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, vocab_size: int, dim: int = 1024, *, dropout: float = 0.0) -> None:
        super().__init__()
        for name, size in (("vocab_size", vocab_size), ("dim", dim)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), got {dropout}")
        self.vocab_size = vocab_size
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, mask: Tensor) -> Tokens:
        check_ids(ids, mask, self.vocab_size)
        tokens = self.dropout(self.embedding(ids))
        return Tokens(tokens.masked_fill(~mask.unsqueeze(-1), 0), mask)
