"""Words and their ids."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from itmkit.checks import InputError
from itmkit.files import read_json, user_path, write_text

PAD, START, END, UNKNOWN, MASK = "<pad>", "<start>", "<end>", "<unk>", "[MASK]"
RESERVED = (PAD, START, END, UNKNOWN, MASK)

# Combining marks (accents, vowel signs) and the two invisible joiners stay inside of words, at most
# 30 in a row as in Unicode's stream-safe text: normalising takes the square of their number.
_CODES = chain(range(0x300, 0x20000), range(0xE0100, 0xE01F0))
_MARKS = "".join(c for c in map(chr, _CODES) if unicodedata.category(c)[0] == "M") + "\u200c\u200d"
_SOME = rf"(?![\0-\u02ff])[{_MARKS}]{{1,30}}"  # most words end before a character that is none
_LETTERS = rf"[^\W_]+(?:{_SOME}[^\W_]+)*(?:{_SOME})?"
_WORD = re.compile(rf"{_LETTERS}(?:['’](?!s\b){_LETTERS})*|['’]s\b")

# Scripts that are written without spaces between words: Thai, Lao, Burmese, Khmer, Tai Le, New Tai
# Lue, Tai Tham, Balinese, kana, Bopomofo, Javanese, Tai Viet, Ahom, and Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f"
    "\U000116d0-\U000116ff\U00011700-\U0001174f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# One letter of them with what belongs to it: marks, the vowel am of Thai and Lao, the half-width
# voicing of kana, and the letters that a Burmese, Khmer or Tai Tham sign stacks below it.
_LETTER = rf"[{_UNSPACED}](?<=[^\W\d_])"
_CLUSTER = re.compile(
    rf"{_LETTER}(?:[\u0e33\u0eb3\uff9e\uff9f{_MARKS}]|(?<=[\u1039\u17d2\u1a60]){_LETTER}){{,30}}"
)


def split_words(caption: str) -> list[str]:
    """The lower-case words of a caption, without its punctuation; ``'s`` is a word of its own.

    In scripts that have no space between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese …) a
    letter with its marks is a word. An accented letter is one character (Unicode's NFC), however
    the caption spells it.

    Example:
        >>> split_words("A dog's ball; two café-tables don't move!")
        ['a', 'dog', "'s", 'ball', 'two', 'café', 'tables', "don't", 'move']
        >>> split_words("一只dog在跑")
        ['一', '只', 'dog', '在', '跑']
    """
    if not caption.isascii():
        caption = _CLUSTER.sub(r" \g<0> ", caption)
    words = (word.replace("’", "'") for word in _WORD.findall(caption.lower()))
    return [word if word.isascii() else unicodedata.normalize("NFC", word) for word in words]


class Vocabulary:
    """A word for every id, and an id for every word.

    ``<pad>`` is id 0. A vocabulary in the field's form (SCAN) has no ``[MASK]``: its ``mask_id``
    is then the id of ``<unk>``.

    Args:
        words: all words by id, with the reserved ``<pad>``, ``<start>``, ``<end>`` and ``<unk>``.

    Raises:
        InputError: if a reserved word is missing, ``<pad>`` is not first or a word comes twice.

    Example:
        >>> vocabulary = Vocabulary.build(["a red dog", "a red cat", "A dog!"], min_count=2)
        >>> len(vocabulary), vocabulary.words[5:]
        (8, ('a', 'dog', 'red'))
        >>> vocabulary["dog"], vocabulary["cat"] == vocabulary.unk_id
        (6, True)
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        missing = [word for word in (PAD, START, END, UNKNOWN) if word not in self._ids]
        if missing:
            raise InputError(f"words lacks the reserved {', '.join(missing)}")
        if self.words[0] != PAD:
            raise InputError(f"words[0] is {self.words[0]!r}; expected {PAD!r}")
        if len(self._ids) != len(self.words):
            twice = Counter(self.words).most_common(1)[0][0]
            raise InputError(f"words has {twice!r} more than once")

    @classmethod
    def build(
        cls, captions: Iterable[str], *, min_count: int = 4, max_size: int = 12_000
    ) -> Vocabulary:
        """The most frequent words of some captions, ties in alphabetical order.

        Args:
            captions: the captions to count.
            min_count: how often a word must appear at least.
            max_size: how many words are kept at most, not counting the five reserved ones.

        Raises:
            InputError: if no word is left.
        """
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(split_words(caption))
        kept = [word for word, count in counts.items() if count >= min_count]
        kept.sort(key=lambda word: (-counts[word], word))
        if not kept[:max_size]:
            raise InputError(
                f"min_count is {min_count} and max_size {max_size}, which leaves no word of the "
                f"captions: the commonest appears {max(counts.values(), default=0)} times; "
                "expected a lower min_count or a higher max_size (of ImageTextData: "
                "vocabulary_min_count, vocabulary_max_size)"
            )
        return cls([*RESERVED, *kept[:max_size]])

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """A vocabulary that :meth:`save` wrote, or one of the field's (SCAN) JSON files.

        Raises:
            InputError: if the file is neither.
        """
        content = read_json(path)
        try:
            return cls(_words_of(content))
        except ValueError as error:
            raise InputError(f"{path} is not a vocabulary: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON, all of it or nothing."""
        text = json.dumps({"words": self.words}, ensure_ascii=False, indent=0)
        write_text(user_path(path), text + "\n")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __getitem__(self, word: str) -> int:
        """The id of a word, that of ``<unk>`` where it is not known."""
        return self._ids.get(word, self.unk_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words)"

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def start_id(self) -> int:
        return self._ids[START]

    @property
    def end_id(self) -> int:
        return self._ids[END]

    @property
    def unk_id(self) -> int:
        return self._ids[UNKNOWN]

    @property
    def mask_id(self) -> int:
        return self._ids.get(MASK, self.unk_id)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of the reserved words."""
        return frozenset(self._ids[word] for word in RESERVED if word in self._ids)


def _words_of(content: Any) -> list[str]:
    if isinstance(content, dict) and isinstance(content.get("words"), list):
        words: list[str] = content["words"]
    elif isinstance(content, dict) and isinstance(content.get("word2idx"), dict):
        ids: dict[str, int] = content["word2idx"]
        if sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
            raise InputError(f"the ids of word2idx are not 0 … {len(ids) - 1}, each once")
        words = sorted(ids, key=lambda word: int(ids[word]))
    else:
        raise InputError("expected {'words': […]}, or {'word2idx': {…}, …}")
    if not all(isinstance(word, str) for word in words):
        raise InputError("its words are not all strings")
    return words
