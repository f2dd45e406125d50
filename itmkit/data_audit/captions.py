"""Statistics of the captions of a split: lengths, unknown words, scripts, and shared ones."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from itmkit.data.tokenizer import CaptionTokens, Tokenizer, WordTokenizer
from itmkit.data.vocabulary import split_words

_SHOWN = 3


@dataclass(frozen=True)
class CaptionStatistics:
    """What a split's captions are like.

    Args:
        count: number of captions.
        words: fewest, median and most words of a caption.
        cut: share that the tokenizer cuts.
        unknown: share of the tokens that it does not know, start and end not counted; None where
            it has no such token.
        unknown_words: the commonest that a word vocabulary lacks, with their counts.
        scripts: share of captions by the script of most of their letters (``LATIN``, ``CJK`` …, as
            Unicode names them); ``NONE`` without letters.
        shared: captions of several images (the same words), with the number of images, the most
            shared first.
    """

    count: int
    words: tuple[int, int, int]
    cut: float
    unknown: float | None
    unknown_words: list[tuple[str, int]]
    scripts: dict[str, float]
    shared: list[tuple[str, int]]

    def __str__(self) -> str:
        fewest, median, most = self.words
        scripts = ", ".join(f"{name} {share:.1%}" for name, share in self.scripts.items())
        lines = [
            f"{self.count:,} captions of {fewest} to {most} words, median {median}; "
            f"{self.cut:.1%} are cut",
            f"scripts: {scripts}",
            f"{len(self.shared):,} captions are shared by several images{_few(self.shared)}",
        ]
        if self.unknown is not None:
            lines.append(f"{self.unknown:.2%} of tokens are unknown{_few(self.unknown_words)}")
        return "\n".join(lines)


def caption_statistics(
    captions: Sequence[str], caption_images: Tensor, tokenizer: Tokenizer
) -> CaptionStatistics:
    """Statistics of some captions.

    Args:
        captions: ``m`` of them, at least one.
        caption_images: ``(m,)`` int64, the image of each.
        tokenizer: that a model reads them with.
    """
    images: dict[str, set[int]] = defaultdict(set)
    unknown: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    lengths, cut = [], 0
    encoded = list(map(tokenizer.encode, captions))
    unk_id = tokenizer.unk_id
    vocabulary = tokenizer.vocabulary if isinstance(tokenizer, WordTokenizer) else None
    for caption, image in zip(captions, caption_images.tolist(), strict=True):
        words = split_words(caption)
        lengths.append(len(words))
        images[" ".join(words)].add(image)
        scripts[script_of(caption)] += 1
        cut += tokenizer.cuts(caption)
        if vocabulary is not None:
            unknown.update(word for word in words if word not in vocabulary)
    lengths.sort()
    shared = Counter({text: len(own) for text, own in images.items() if len(own) > 1})
    return CaptionStatistics(
        count=len(captions),
        words=(lengths[0], lengths[len(lengths) // 2], lengths[-1]),
        cut=cut / len(captions),
        unknown=None if unk_id is None else CaptionTokens(encoded).share(unk_id),
        unknown_words=unknown.most_common(),
        scripts={name: count / len(captions) for name, count in scripts.most_common()},
        shared=shared.most_common(),
    )


def script_of(caption: str) -> str:
    """The script of most letters of a caption, as Unicode names it.

    Example:
        >>> script_of("a dog"), script_of("собака dog"), script_of("狗在跑"), script_of("12!")
        ('LATIN', 'CYRILLIC', 'CJK', 'NONE')
    """
    if caption.isascii():
        return "LATIN" if any(map(str.isalpha, caption)) else "NONE"
    letters = filter(str.isalpha, caption)
    found = Counter(unicodedata.name(letter, "OTHER").split()[0] for letter in letters)
    return found.most_common(1)[0][0] if found else "NONE"


def _few(counts: Sequence[tuple[str, int]]) -> str:
    few = ", ".join(f"{text!r} {count}×" for text, count in counts[:_SHOWN])
    return f", such as {few}" if few else ""
