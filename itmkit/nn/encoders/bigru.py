"""A bidirectional GRU over word ids."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from itmkit.checks import InputError, check_count, check_dropout
from itmkit.nn.contract import Tokens
from itmkit.nn.encoders.word_embedding import WordEmbedding
from itmkit.nn.layers.gru import gru_states


class BiGRU(nn.Module):
    r"""Word embeddings through a bidirectional GRU, the two directions averaged.

    .. math:: t_l = (\overrightarrow{h}_l + \overleftarrow{h}_l) / 2

    The text encoder of VSE∞, ESA and TVRN. Sequences are packed, so padding has no effect (and
    ``torch.compile`` breaks the graph there). ``torch.export`` gets a GRU over the padded rows for
    each direction, the words of a caption reversed for the backward one: the same tokens.

    Args:
        vocab_size: number of word ids; None to take it from the tokenizer of the data, or from the
            checkpoint that is loaded, see :class:`WordEmbedding`.
        embed_dim: width of the word embeddings.
        dim: width D of the GRU, and of the tokens.
        dropout: dropout on the embeddings, in [0, 1).
        num_layers: layers of the GRU.
        word_vectors: a ``.npy`` file ``(vocab_size, embed_dim)`` to start the embeddings from.

    Shape:
        - ids: ``(B, L)`` int64
        - mask: ``(B, L)`` bool, True on real words, which come first
        - output: tokens ``(B, L, D)``, zero on padding, and ``mask``

    Raises:
        InputError: a wrong size, an id outside the vocabulary, a mask that does not fit ``ids`` or
            has padding before a word, word vectors of another shape; in use, a number of word ids
            that is still unknown.
        FileNotFoundError: there is no file ``word_vectors``.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
        >>> tokens, mask = BiGRU(10, embed_dim=4, dim=8)(ids, ids > 0)
        >>> tokens.shape, tokens[1, 1:].abs().sum().item()
        (torch.Size([2, 3, 8]), 0.0)
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        embed_dim: int = 300,
        dim: int = 1024,
        *,
        dropout: float = 0.0,
        num_layers: int = 1,
        word_vectors: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_count(embed_dim=embed_dim, dim=dim, num_layers=num_layers)
        check_dropout(dropout=dropout)
        self.dim = dim
        self.embedding = WordEmbedding(vocab_size, embed_dim, word_vectors=word_vectors)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(embed_dim, dim, num_layers, batch_first=True, bidirectional=True)

    @property
    def vocab_size(self) -> int:
        """Number of word ids; 0 where it is not known yet."""
        return self.embedding.vocab_size

    def forward(self, ids: Tensor, mask: Tensor) -> Tokens:
        words = self.dropout(self.embedding(ids, mask))
        if torch.compiler.is_exporting():
            return self._tokens(self._padded_states(words, mask), mask)
        real = mask.cpu()  # where packing wants the lengths
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise InputError("mask has padding before a word; expected words first in every row")
        lengths = real.sum(1).clamp_min(1)  # a caption without a word runs on one pad
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=len(ids.T))
        return self._tokens(out, mask)

    def _tokens(self, states: Tensor, mask: Tensor) -> Tokens:
        tokens = states.unflatten(-1, (2, self.dim)).mean(-2)
        return Tokens(tokens.masked_fill(~mask.unsqueeze(-1), 0), mask)

    def _padded_states(self, words: Tensor, mask: Tensor) -> Tensor:
        """States ``(B, L, 2D)`` of both directions, without packed sequences."""
        place = torch.arange(mask.shape[1], device=mask.device)
        last = mask.sum(1, keepdim=True) - 1
        reverse = torch.where(place <= last, last - place, place).unsqueeze(-1)
        start = words.new_zeros(words.shape[0], self.dim)
        for forward, backward in zip(*[iter(self.gru.all_weights)] * 2, strict=True):
            ahead = gru_states(words, start, forward)
            turned = words.gather(1, reverse.expand(-1, -1, words.shape[2]))
            behind = gru_states(turned, start, backward).gather(1, reverse.expand(-1, -1, self.dim))
            words = torch.cat([ahead, behind], dim=-1)
        return words
