"""Token features of captions on disk: what a frozen text model gave, once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError, type_of
from itmkit.data.array_writer import digest
from itmkit.data.batch import Texts
from itmkit.data.feature_file import split_path
from itmkit.data.mapped_array import MappedArray, NotFiniteError
from itmkit.data.tokenizer import (
    Caption,
    CaptionTokens,
    Tokenizer,
    TransformersTokenizer,
    WordTokenizer,
)
from itmkit.files import check_folder, read_json, read_text, user_path

#: What of their notes the features of two splits have in common where one text model made them.
MODEL_KEYS = ("layers", "max_length", "config", "weights", "tokenizer")
_OF_A_CALL = ("truncation", "padding")


class TokenFile(MappedArray):
    """The token features of the captions of a split, as ``itmkit extract --text_model`` wrote them.

    ==========================  ===================================================================
    ``{split}_tokens.npy``      features ``(T, D)`` of all tokens, caption by caption, no padding
    ``{split}_tokens.jsonl``    a caption a line, each once: its text and its token ids
    ``{split}_tokens.json``     model, tokenizer and captions that they are of, as names and hashes
    ==========================  ===================================================================

    Args:
        folder: with the files.
        split: name of the split.

    Attributes:
        notes: what the features are of.
        tokens: the token ids of the captions of the file.

    Raises:
        FileNotFoundError: if a file is missing.
        InputError: if the files are not what ``itmkit extract`` wrote, or not of each other.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        folder = user_path(folder)
        check_folder("text_features", folder)
        path = split_path(folder, split, "_tokens.npy")
        super().__init__(path, ("tokens", "dim"))
        notes, lines = path.with_suffix(".json"), path.with_suffix(".jsonl")
        self.notes: dict[str, Any] = _read_notes(notes)
        captions, ids = _read_captions(lines)
        if digest_of_captions(captions, ids) != self.notes["captions"]:
            raise InputError(f"{lines} was changed since {notes.name} was written; extract anew")
        self.tokens = CaptionTokens(Caption(own, [-1] * len(own)) for own in ids)
        self._starts = np.concatenate([[0], self.tokens.lengths.numpy().cumsum()])
        if self._starts[-1] != len(self):
            raise InputError(
                f"{path} has {len(self)} rows; expected {self._starts[-1]}, one for every token "
                f"in {lines.name}"
            )
        self._rows = {caption: row for row, caption in enumerate(captions)}

    def rows_of(self, captions: Sequence[str], split: str) -> np.ndarray[Any, Any]:
        """For some captions, which of the file each is.

        Raises:
            InputError: if the file lacks one.
        """
        missing = [caption for caption in captions if caption not in self._rows]
        if missing:
            raise InputError(
                f"{self.path} lacks the caption {missing[0][:80]!r}, in all {len(missing)} of the "
                f"{len(captions)} captions of the split {split!r}; it is of other captions: "
                "extract theirs"
            )
        return np.array([self._rows[caption] for caption in captions], dtype=np.int64)

    def read(self, rows: Sequence[int]) -> Tensor:
        """The features of some captions as float32 ``(m, L, D)``, zero on padding.

        Args:
            rows: captions of the file.

        Raises:
            InputError: if the file is not the one that was opened, or a value is not finite.
        """
        spans = [slice(int(self._starts[row]), int(self._starts[row + 1])) for row in rows]
        try:
            return torch.from_numpy(self.padded(spans, slice(None)))
        except NotFiniteError as error:
            raise InputError(
                f"{self.path} has a value that is not finite in row {error.place[0]}: "
                f"{error.value:g}"
            ) from None


class CaptionFeatures(CaptionTokens):
    """The captions of a split with their stored features, instead of what a tokenizer gives.

    Args:
        file: with the features of these captions, and maybe of others.
        captions: of the split.
        split: name of the split, for errors.

    Raises:
        InputError: if the file lacks a caption.
    """

    def __init__(self, file: TokenFile, captions: Sequence[str], split: str) -> None:
        self._file_rows = file.rows_of(captions, split)
        super().__init__(map(file.tokens.__getitem__, self._file_rows.tolist()))
        self.file = file

    def padded(self, rows: Sequence[int] | Tensor, pad_id: int) -> Texts:
        texts = super().padded(rows, pad_id)
        own = self._file_rows[np.asarray(rows, dtype=np.int64)]
        return replace(texts, features=self.file.read(own.tolist()))


class StoredTokenizer(Tokenizer):
    """Stands for the tokenizer of stored features: the ids are there, words are not.

    Args:
        notes: of a :class:`TokenFile`.
    """

    mask_id = None
    special_ids = frozenset()
    content_ids = torch.empty(0, dtype=torch.int64)

    def __init__(self, notes: dict[str, Any]) -> None:
        self.pad_id, self._size = notes["pad_id"], notes["ids"]
        self.text_model = notes["text_model"]

    def encode(self, caption: str) -> Caption:
        raise InputError(
            f"caption is {caption[:80]!r}, but the data has text_features and no tokenizer; "
            f"expected one of {self.text_model!r}"
        )

    def __len__(self) -> int:
        return int(self._size)


def digest_of_captions(captions: Iterable[str], ids: Iterable[Sequence[int]]) -> str:
    """A short hash of captions with their token ids."""
    return digest(json.dumps(line).encode() for line in zip(captions, map(list, ids), strict=True))


def digest_of_tokenizer(tokenizer: Tokenizer) -> str:
    """A short hash of all that decides which ids a caption gets, but for where it is cut.

    Raises:
        InputError: for a tokenizer that does not tell what it is made of.
    """
    content: Any
    if isinstance(tokenizer, TransformersTokenizer):
        content = dict(tokenizer.pretrained_source.content)
        pieces = json.loads(content["tokenizer"])
        # set by its calls, and not part of what it is
        content["tokenizer"] = {k: v for k, v in pieces.items() if k not in _OF_A_CALL}
    elif isinstance(tokenizer, WordTokenizer):
        content = list(tokenizer.vocabulary.words)
    else:
        raise InputError(
            f"tokenizer is {type_of(tokenizer)}; expected a TransformersTokenizer or WordTokenizer"
        )
    return digest([json.dumps(content, sort_keys=True).encode()])


def check_same_model(
    found: Mapping[str, Any], expected: Mapping[str, Any], path: Path, source: object
) -> None:
    """Raise unless two notes are of one text model.

    Args:
        found: notes of a file of features.
        expected: other notes.
        path: of the file.
        source: of the other notes.

    Raises:
        InputError: with the first thing that differs.
    """
    for key in MODEL_KEYS:
        if found[key] != expected[key]:
            raise InputError(
                f"{path} has features of another text model than {source}, {found['text_model']!r} "
                f"and {expected['text_model']!r}: {key} is {found[key]!r}, expected "
                f"{expected[key]!r}"
            )


def check_tokenizer(file: TokenFile, tokenizer: Tokenizer) -> None:
    """Raise unless a tokenizer is the one that features were made with.

    Raises:
        InputError: if it is another one, or cuts captions to another length.
    """
    own = {"tokenizer": digest_of_tokenizer(tokenizer), "max_length": tokenizer.max_length}
    for key, value in own.items():
        if file.notes[key] != value:
            raise InputError(
                f"{file.path} was made with another tokenizer, that of {file.notes['text_model']!r}"
                f": {key} is {file.notes[key]!r}, that of the data's {value!r}; leave tokenizer out"
            )


def _read_notes(path: Path) -> dict[str, Any]:
    notes = read_json(path)
    keys = {"text_model", "captions", "pad_id", "ids", *MODEL_KEYS}
    if not isinstance(notes, dict) or not keys <= notes.keys():
        raise InputError(f"{path} is not what itmkit extract --text_model writes")
    return notes


def _read_captions(path: Path) -> tuple[list[str], list[list[int]]]:
    captions, ids = [], []
    try:
        for line in read_text(path).splitlines():
            caption, own = json.loads(line)
            captions.append(caption)
            ids.append(own)
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not what itmkit extract --text_model writes: line {len(ids) + 1}"
        ) from error
    return captions, ids
