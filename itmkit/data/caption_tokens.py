"""The captions of a split, tokenised once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from itmkit.data.batch import Texts
from itmkit.data.tokenizer import Caption


class CaptionTokens:
    """Tokenised captions in one flat array, which worker processes share.

    Eight bytes a token, where lists of Python numbers take many times that and are copied page by
    page into every worker that reads them.

    Args:
        captions: what a :class:`Tokenizer` made of them.

    Example:
        >>> tokens = CaptionTokens([Caption([1, 7, 2], [-1, 0, -1]), Caption([1, 2], [-1, -1])])
        >>> len(tokens), tokens.lengths.tolist(), tokens[1]
        (2, [3, 2], Caption(ids=[1, 2], words=[-1, -1]))
        >>> tokens.padded([1, 0], pad_id=0).ids.tolist()
        [[1, 2, 0], [1, 7, 2]]
    """

    def __init__(self, captions: Iterable[Caption]) -> None:
        ids, words, lengths = array("i"), array("i"), array("q")
        for caption in captions:
            ids.extend(caption.ids)
            words.extend(caption.words)
            lengths.append(len(caption.ids))
        self._ids, self._words = (np.array(part, np.int32) for part in (ids, words))
        #: ``(m,)`` int64, how many tokens each caption has
        self.lengths = torch.from_numpy(np.array(lengths, np.int64))
        self._starts = np.concatenate([[0], lengths]).cumsum()

    def __getitem__(self, row: int) -> Caption:
        own = slice(self._starts[row], self._starts[row + 1])
        return Caption(self._ids[own].tolist(), self._words[own].tolist())

    def __len__(self) -> int:
        return len(self.lengths)

    def share(self, token: int) -> float:
        """How many of all tokens are this one, in [0, 1], not counting those that are no word.

        Example:
            >>> CaptionTokens([Caption([1, 7, 3, 2], [-1, 0, 1, -1])]).share(3)
            0.5
        """
        words = self._words >= 0
        return float((self._ids[words] == token).sum() / max(words.sum(), 1))

    def padded(self, rows: Sequence[int] | Tensor, pad_id: int) -> Texts:
        """Some of the captions as a batch, as :func:`pad_texts` makes it."""
        own = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths.numpy()[own]
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        ids = np.full(mask.shape, pad_id)
        places = np.arange(mask.shape[1]) + self._starts[own, None]
        ids[mask] = self._ids[places[mask]]
        return Texts(torch.from_numpy(ids), torch.from_numpy(mask))
