"""The tokens of the captions of all splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn

from itmkit.checks import InputError
from itmkit.data.token_file import (
    MODEL_KEYS,
    CaptionFeatures,
    StoredTokenizer,
    TokenFile,
    check_same_model,
    check_tokenizer,
)
from itmkit.data.tokenizer import CaptionTokens, Tokenizer, WordTokenizer
from itmkit.data.vocabulary import Vocabulary

MOST_UNKNOWN = 0.2  # share of the tokens of a split, above which a warning is due


class SplitTokens:
    """The tokens of the captions of every split, by one tokenizer or as stored features.

    Args:
        captions: gives those of a split, by its name.
        tokenizer: of all captions; None: that of the stored features, or ``words``.
        words: makes a tokenizer of words when it is first asked for.
        folder: gives the folder with the stored token features of a split; None: there are none.
        train_split: whose stored features say which tokenizer they were made with.
    """

    _warned: ClassVar[set[str]] = set()  # what this process has warned of

    def __init__(
        self,
        captions: Callable[[str], Sequence[str]],
        tokenizer: Tokenizer | None,
        *,
        words: Callable[[], WordTokenizer],
        folder: Callable[[str], str | Path] | None,
        train_split: str,
    ) -> None:
        self._captions, self._folder, self._train_split = captions, folder, train_split
        self._words, self._given = words, tokenizer
        self._tokenizer = tokenizer
        self._tokens: dict[str, CaptionTokens] = {}
        self._files: dict[str, TokenFile] = {}
        self._most: int | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all captions; built when first asked for."""
        if self._tokenizer is None and self._folder is not None:
            opened = [*self._files.values()] or [self._file(self._train_split)]
            self._tokenizer = StoredTokenizer(opened[0].notes)
        if self._tokenizer is None:
            self._tokenizer = self._words()
        most, length = self._most, self._tokenizer.max_length
        if most is not None and length is not None and length > most:
            rank_zero_warn(
                f"tokenizer.max_length is {length}; captions are cut to {most} tokens, the most "
                "that the text encoder takes"
            )
            self._tokenizer = self._tokenizer.cut_to(most)
            self._tokens.clear()
        return self._tokenizer

    def limit(self, most: int) -> None:
        """Cut captions to so many tokens, where the tokenizer would leave more."""
        self._most = most

    def of(self, split: str) -> CaptionTokens:
        """The tokens of the captions of a split; read when first asked for.

        That is before worker processes start, so that these share the one copy.
        """
        tokenizer = self.tokenizer
        if split not in self._tokens:
            captions = self._captions(split)
            if self._folder is None or not captions:
                self._tokens[split] = CaptionTokens(map(tokenizer.encode, captions))
                self._warn_of_unknown(split)
            else:
                self._tokens[split] = CaptionFeatures(self._file(split), captions, split)
        return self._tokens[split]

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the text model of stored features, the words of a word tokenizer."""
        state: dict[str, Any] = {}
        if self._files:
            notes = next(iter(self._files.values())).notes
            state["text_features"] = {
                key: notes[key] for key in ("text_model", "dtype", *MODEL_KEYS)
            }
        if isinstance(self.tokenizer, WordTokenizer):
            state["vocabulary"] = list(self.tokenizer.vocabulary.words)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the words of a checkpoint.

        Raises:
            InputError: the tokenizer that was given, or the stored features, are of another model.
        """
        for file in self._files.values():
            check_same_model(
                file.notes, state.get("text_features", file.notes), file.path, "the checkpoint"
            )
        if "vocabulary" not in state:
            return
        vocabulary = Vocabulary(state["vocabulary"])
        if self._given is None:
            self._tokenizer = WordTokenizer(vocabulary)
            self._tokens.clear()
        elif not isinstance(self._given, WordTokenizer):
            raise InputError(
                f"tokenizer is a {type(self._given).__name__}, but the checkpoint was trained with "
                f"a vocabulary of {len(vocabulary)} words"
            )
        elif self._given.vocabulary != vocabulary:
            raise InputError(
                f"tokenizer has {len(self._given.vocabulary)} words that are not the "
                f"{len(vocabulary)} words of the checkpoint"
            )

    def _file(self, split: str) -> TokenFile:
        if split not in self._files:
            assert self._folder is not None
            file = TokenFile(self._folder(split), split)
            for other in self._files.values():
                check_same_model(file.notes, other.notes, file.path, other.path)
            if self._given is not None:
                check_tokenizer(file, self._given)
            self._files[split] = file
        return self._files[split]

    def _warn_of_unknown(self, split: str) -> None:
        unk_id = self.tokenizer.unk_id
        share = 0.0 if unk_id is None else self._tokens[split].share(unk_id)
        message = (
            f"{share:.1%} of the tokens of the captions of split {split!r} are unknown to the "
            f"{type(self.tokenizer).__name__}; expected at most {MOST_UNKNOWN:.0%}. A "
            "vocabulary of other captions or of another language, or a high "
            "vocabulary_min_count, are the usual reasons"
        )
        if share > MOST_UNKNOWN and message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)
