"""Vectors of word ids, for a vocabulary that may be known only later."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import InputError, check_optional_count
from itmkit.files import user_path
from itmkit.nn.functional import check_ids
from itmkit.pretrained import following_weights


class WordEmbedding(nn.Module):
    """A vector for every word id, as ``nn.Embedding``; the number of ids may come later.

    Where ``vocab_size`` is None, the embedding has no rows until :meth:`complete` gives it some, or
    a state dict that is loaded: then it has as many as that one, whatever it had before. A
    :class:`itmkit.systems.Matcher` completes it from the tokenizer of its data. The vectors depend
    on the random state at construction, and not on when they are made.

    Args:
        vocab_size: number of word ids; None where it is not known yet.
        dim: width D of the vectors.
        word_vectors: a ``.npy`` file ``(vocab_size, D)`` to start from; None: the normal
            distribution.

    Shape:
        - ids: ``(B, L)`` int64
        - mask: ``(B, L)`` bool, True on real words
        - output: ``(B, L, D)``

    Raises:
        InputError: a wrong size, an id outside the vocabulary, a mask that does not fit ``ids``,
            word vectors of another shape; in use, an embedding that was never completed.
        FileNotFoundError: there is no file ``word_vectors``.

    Example:
        >>> words = WordEmbedding(None, 4)
        >>> words.complete(10)
        >>> words.vocab_size, words(torch.tensor([[1, 9]]), torch.ones(1, 2).bool()).shape
        (10, torch.Size([1, 2, 4]))
    """

    def __init__(
        self, vocab_size: int | None, dim: int, *, word_vectors: str | Path | None = None
    ) -> None:
        super().__init__()
        check_optional_count(vocab_size=vocab_size)
        self.weight = nn.Parameter(torch.empty(0, dim))
        self._vectors = None
        if word_vectors is not None and not following_weights():
            self._vectors = _read(user_path(word_vectors), vocab_size, dim)
        self._word_vectors = word_vectors
        if vocab_size is not None:
            self._seed = None
            self.complete(vocab_size)
        else:
            self._seed = int(torch.randint(2**62, ()))
            self.register_load_state_dict_pre_hook(_take_rows)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """Number of word ids; 0 where it is not known yet."""
        return len(self.weight)

    @torch.inference_mode(False)  # an evaluation may complete what is trained later
    def complete(self, vocab_size: int) -> None:
        """Give the embedding its rows, if it has none yet.

        Raises:
            InputError: if ``word_vectors`` has another number of rows.
        """
        if self.vocab_size:
            return
        if self._vectors is not None:
            _check_shape(self._word_vectors, self._vectors, (vocab_size, self.weight.shape[1]))
            rows, self._vectors = self._vectors, None
        else:
            rows = torch.empty(vocab_size, self.weight.shape[1], device="cpu")
            generator = None if self._seed is None else torch.Generator().manual_seed(self._seed)
            nn.init.normal_(rows, generator=generator)
        self.weight.data = rows.to(self.weight)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if not self.vocab_size:
            raise InputError(
                "vocab_size is None; expected a number, or training with a data module that has "
                "vocabulary_size (ImageTextData)"
            )
        check_ids(ids, mask, self.vocab_size)
        return F.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.vocab_size or None}, {self.weight.shape[1]}"


def _take_rows(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """As many rows as the state dict that is being loaded has."""
    own, saved = module.weight, state_dict.get(f"{prefix}weight")
    assert isinstance(own, nn.Parameter)
    if saved is not None and saved.shape[1:] == own.shape[1:] and len(saved) != len(own):
        own.data, own.grad = own.new_empty(saved.shape), None


def _read(path: Path, vocab_size: int | None, dim: int) -> Tensor:
    import numpy as np

    try:
        vectors = torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, EOFError) as error:
        raise InputError(
            f"word_vectors {path} cannot be read ({error}); expected a .npy file of numbers"
        ) from error
    _check_shape(path, vectors, (vocab_size or len(vectors) if vectors.ndim else 0, dim))
    return vectors


def _check_shape(path: str | Path | None, vectors: Tensor, shape: tuple[int, int]) -> None:
    if vectors.shape != shape:
        raise InputError(
            f"word_vectors {path} has the shape {tuple(vectors.shape)}; expected {shape}, a row a "
            "word id"
        )
