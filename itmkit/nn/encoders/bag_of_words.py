"""A text encoder without word order: the baseline."""

from __future__ import annotations

from torch import Tensor, nn

from itmkit.checks import check_count, check_dropout
from itmkit.nn.contract import Tokens
from itmkit.nn.encoders.word_embedding import WordEmbedding


class BagOfWords(nn.Module):
    """Word embeddings and nothing else: a caption is the set of its words.

    Args:
        vocab_size: number of word ids; None to take it from the tokenizer of the data, or from the
            checkpoint that is loaded, see :class:`WordEmbedding`.
        dim: width D of the tokens.
        dropout: dropout on the embeddings, in [0, 1).

    Shape:
        - ids: ``(B, L)`` int64
        - mask: ``(B, L)`` bool, True on real words
        - output: tokens ``(B, L, D)``, zero on padding, and ``mask``

    Raises:
        InputError: a wrong size, an id outside the vocabulary, or a mask that does not fit ``ids``;
            in use, a number of word ids that is still unknown.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2, 0]])
        >>> BagOfWords(10, 8)(ids, ids > 0)[0].shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self, vocab_size: int | None = None, dim: int = 1024, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_count(dim=dim)
        check_dropout(dropout=dropout)
        self.dim = dim
        self.embedding = WordEmbedding(vocab_size, dim)
        self.dropout = nn.Dropout(dropout)

    @property
    def vocab_size(self) -> int:
        """Number of word ids; 0 where it is not known yet."""
        return self.embedding.vocab_size

    def forward(self, ids: Tensor, mask: Tensor) -> Tokens:
        tokens = self.dropout(self.embedding(ids, mask))
        return Tokens(tokens.masked_fill(~mask.unsqueeze(-1), 0), mask)
