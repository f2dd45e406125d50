"""Noise on the words of training captions."""

from __future__ import annotations

import torch
from torch import Generator

from itmkit.checks import InputError
from itmkit.data.tokenizer import Caption, Tokenizer


class CaptionNoise:
    r"""Masks, replaces and drops words of a caption, as ESA and VSE∞ train with.

    Each word is touched with probability ``p``; of the touched ones a share ``mask`` becomes the
    mask token, ``random`` a random token and ``drop`` is left out (what is then missing to 1
    stays as it is). All pieces of a word share its fate. Special tokens are never touched, and
    where every word would be left out, one of them stays.

    Args:
        p: probability that a word is touched, in [0, 1].
        mask: share of the touched words that are masked.
        random: share of the touched words that are replaced.
        drop: share of the touched words that are left out.

    Raises:
        InputError: if a probability is outside [0, 1], or the shares sum to more than 1; when
            called, if the tokenizer has no mask token and ``mask`` is not 0.

    Example:
        >>> from itmkit.data.tokenizer import WordTokenizer
        >>> from itmkit.data.vocabulary import Vocabulary
        >>> tokenizer = WordTokenizer(Vocabulary.build(["a red dog on grass"], min_count=1))
        >>> noise = CaptionNoise(p=1.0, mask=1.0, random=0.0, drop=0.0)
        >>> noise(tokenizer.encode("a red dog"), tokenizer).ids
        [1, 4, 4, 4, 2]
    """

    def __init__(
        self, *, p: float = 0.2, mask: float = 0.5, random: float = 0.1, drop: float = 0.4
    ) -> None:
        for name, value in (("p", p), ("mask", mask), ("random", random), ("drop", drop)):
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name} is {value}; expected a probability in [0, 1]")
        if mask + random + drop > 1.0 + 1e-9:
            raise InputError(f"mask + random + drop is {mask + random + drop}; expected at most 1")
        self.p, self.mask, self.random, self.drop = p, mask, random, drop

    def __call__(
        self, caption: Caption, tokenizer: Tokenizer, generator: Generator | None = None
    ) -> Caption:
        """A noisy copy of a caption.

        Args:
            caption: what ``tokenizer`` encoded.
            tokenizer: names the mask token and what random tokens are drawn from.
            generator: source of the randomness; the global one of torch where None.
        """
        if self.mask and tokenizer.mask_id is None:
            raise InputError(f"mask is {self.mask}, but the tokenizer has no mask token: use 0")
        words = list(dict.fromkeys(word for word in caption.words if word >= 0))
        touched, kind = torch.rand(2, len(words), generator=generator).tolist()
        masked, replaced, dropped = set(), set(), set()
        for word, touch, share in zip(words, touched, kind, strict=True):
            if touch >= self.p:
                continue
            if share < self.mask:
                masked.add(word)
            elif share < self.mask + self.random:
                replaced.add(word)
            elif share < self.mask + self.random + self.drop:
                dropped.add(word)
        if dropped and len(dropped) == len(words):
            dropped.discard(words[int(torch.randint(len(words), (), generator=generator))])
        if not (masked or replaced or dropped):
            return caption

        ids: list[int] = []
        kept: list[int] = []
        for token, word in zip(*caption, strict=True):
            if word in dropped:
                continue
            if word in masked and tokenizer.mask_id is not None:
                token = tokenizer.mask_id
            elif word in replaced:
                drawable = tokenizer.content_ids
                token = int(drawable[torch.randint(len(drawable), (), generator=generator)])
            ids.append(token)
            kept.append(word)
        return Caption(ids, kept)

    def __repr__(self) -> str:
        return f"CaptionNoise(p={self.p}, mask={self.mask}, random={self.random}, drop={self.drop})"
