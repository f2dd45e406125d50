"""From a caption to ids: whole words, or the pieces of a transformers model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from copy import copy
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError, check_count
from itmkit.data.batch import Texts
from itmkit.data.vocabulary import Vocabulary, split_words
from itmkit.files import user_path
from itmkit.pretrained import Source, fetch_tokenizer


class Caption(NamedTuple):
    """A tokenised caption.

    Args:
        ids: the token ids, special ones included.
        words: for every token the number of its word in the caption; -1 on special tokens.
    """

    ids: list[int]
    words: list[int]


class Tokenizer(ABC):
    """What turns a caption into ids, and what caption noise may put in their place.

    The same caption always gives the same ids: training asks once, and not in every epoch.
    """

    #: id that fills up the shorter captions of a batch
    pad_id: int
    #: id of a masked word; None where the tokenizer has none
    mask_id: int | None
    #: id of what the tokenizer does not know; None where it has none
    unk_id: int | None = None
    #: most tokens of a caption, the rest is cut off; None where nothing is
    max_length: int | None = None
    #: ids that stand for no word
    special_ids: frozenset[int]
    #: ``(w,)`` int64, the ids that a random token is drawn from
    content_ids: Tensor

    def cut_to(self, most: int) -> Self:
        """A copy that leaves at most so many tokens of a caption."""
        own = copy(self)
        own.max_length = most
        return own

    @abstractmethod
    def encode(self, caption: str) -> Caption:
        """The tokens of a caption, between its start and end token; at least one."""

    def words(self, caption: str) -> list[str]:
        """The words that :class:`Caption` numbers, as a reader knows them; by default at spaces."""
        return caption.split()

    def cuts(self, caption: str) -> bool:
        """Whether something of a caption is cut off; by default, whether that may be."""
        return self.max_length is not None and len(self.encode(caption).ids) >= self.max_length

    @abstractmethod
    def __len__(self) -> int:
        """How many ids there are: the rows that an embedding needs."""


class WordTokenizer(Tokenizer):
    """Words of a :class:`Vocabulary`, for a text encoder trained from scratch.

    Args:
        vocabulary: a vocabulary, or the path of a saved one (also the field's SCAN form).
        max_length: most tokens of a caption, start and end included; the rest is cut off.

    Raises:
        InputError: if ``max_length`` leaves no room for a word.

    Example:
        >>> tokenizer = WordTokenizer(Vocabulary.build(["a red dog"], min_count=1))
        >>> tokenizer.encode("A red fox.")
        Caption(ids=[1, 5, 7, 3, 2], words=[-1, 0, 1, 2, -1])
    """

    def __init__(self, vocabulary: Vocabulary | str | Path, *, max_length: int = 64) -> None:
        check_count(3, max_length=max_length)
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary.load(vocabulary)
        self.vocabulary = vocabulary
        self.max_length: int = max_length
        self.pad_id = vocabulary.pad_id
        self.mask_id = vocabulary.mask_id
        self.unk_id = vocabulary.unk_id
        self.special_ids = vocabulary.special_ids
        self.content_ids = _content_ids(len(vocabulary), self.special_ids)

    def encode(self, caption: str) -> Caption:
        words = split_words(caption)[: self.max_length - 2]
        ids = [self.vocabulary[word] for word in words]
        return Caption(
            [self.vocabulary.start_id, *ids, self.vocabulary.end_id],
            [-1, *range(len(words)), -1],
        )

    def words(self, caption: str) -> list[str]:
        return split_words(caption)[: self.max_length - 2]

    def cuts(self, caption: str) -> bool:
        return len(split_words(caption)) > self.max_length - 2

    def __len__(self) -> int:
        return len(self.vocabulary)


class TransformersTokenizer(Tokenizer):
    """The word pieces of a transformers model.

    Args:
        name_or_path: name of a model on the hub, or a local folder (which needs no network).
        max_length: most tokens of a caption, special ones included; the rest is cut off.

    Code that comes with a model is never run. A model without a pad token is padded by its end
    token. Captions for a SigLIP model are lower-cased, as it was trained.

    Attributes:
        pretrained_source: the tokenizer itself, for checkpoints.

    Raises:
        InputError: if the tokenizer is not found, has no fast form (it tells no words apart), has
            no pad and no end token, or needs code of its own.
    """

    def __init__(self, name_or_path: str | Path, *, max_length: int = 64) -> None:
        check_count(3, max_length=max_length)
        self.name_or_path = str(user_path(name_or_path))
        self.max_length: int = max_length
        self._key = str(name_or_path)
        tokenizer = fetch_tokenizer(self._key, self.name_or_path)
        if not tokenizer.is_fast:
            raise InputError(
                f"name_or_path={self.name_or_path!r} is a {type(tokenizer).__name__}; expected a "
                "fast tokenizer, which tells which pieces make a word"
            )
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id)  # the mask tells padding anyway
        if pads == (None, None):
            raise InputError(f"name_or_path={self.name_or_path!r} has no pad token")
        self._tokenizer = tokenizer
        self.pad_id: int = pads[1] if pads[0] is None else pads[0]
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.mask_id = tokenizer.mask_token_id
        self.unk_id = tokenizer.unk_token_id
        pieces = tokenizer.get_vocab()
        unused = {i for piece, i in pieces.items() if piece.startswith("[unused")}
        self._size: int = max(pieces.values()) + 1  # an id may be left out
        self.content_ids = _content_ids(self._size, self.special_ids | unused)

    @property
    def pretrained_source(self) -> Source:
        """The tokenizer itself, for checkpoints."""
        content = {
            "tokenizer": self._tokenizer.backend_tokenizer.to_str(),
            "special": dict(self._tokenizer.special_tokens_map),
            "extra": [str(token) for token in self._tokenizer.extra_special_tokens],
        }
        return Source("tokenizer", self._key, content)

    def encode(self, caption: str) -> Caption:
        encoded = self._tokenizer(caption, truncation=True, max_length=self.max_length)
        words = [-1 if word is None else word for word in encoded.word_ids()]
        if not words:  # nothing to say, and no special tokens to say it with
            return Caption([self.pad_id], [-1])
        return Caption(list(encoded["input_ids"]), words)

    def words(self, caption: str) -> list[str]:
        encoded = self._tokenizer(caption, truncation=True, max_length=self.max_length)
        numbers = sorted({word for word in encoded.word_ids() if word is not None})
        spans = [encoded.word_to_chars(number) for number in numbers]
        return [caption[span.start : span.end].strip() for span in spans]

    def cuts(self, caption: str) -> bool:
        return len(self._tokenizer(caption, verbose=False)["input_ids"]) > self.max_length

    def __len__(self) -> int:
        return self._size


def pad_texts(ids: list[list[int]], pad_id: int) -> Texts:
    """Captions of different lengths as one batch, padded at the end.

    Args:
        ids: ``m`` captions of at least one token.
        pad_id: what fills up the shorter ones.

    Returns:
        Ids and mask ``(m, L)``, with L the length of the longest one.

    Example:
        >>> texts = pad_texts([[1, 5, 2], [1, 2]], pad_id=0)
        >>> texts.ids.tolist(), texts.mask.tolist()
        ([[1, 5, 2], [1, 2, 0]], [[True, True, True], [True, True, False]])
    """
    lengths = torch.tensor([len(caption) for caption in ids], dtype=torch.int64)
    mask = torch.arange(int(lengths.max()) if ids else 0)[None, :] < lengths[:, None]
    padded = torch.full(mask.shape, pad_id)
    padded[mask] = torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int64)
    return Texts(padded, mask)


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


def _content_ids(size: int, special: frozenset[int]) -> Tensor:
    return torch.tensor([i for i in range(size) if i not in special], dtype=torch.int64)
