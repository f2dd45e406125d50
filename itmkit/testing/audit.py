"""An audit of an evaluation: does recall come from what the images and captions show?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from itmkit.checks import InputError, check_seed, type_of
from itmkit.data.batch import Batch
from itmkit.metrics.query_ranks import LEVELS, chance_recall
from itmkit.systems import Matcher
from itmkit.testing.batches import taken
from itmkit.testing.evaluations import Evaluation, MatcherEvaluation, Score, ScoreEvaluation
from itmkit.testing.pairs import Pairs, as_pairs, derangement, noise, reordered, with_wrong_padding

Verdict = Literal["pass", "leak", "inconclusive"]

TOLERANCE = 0.1  # points of recall that order, shards, padding and batch size may change
_KEYS = [f"{side}_r{level}" for side in ("i2t", "t2i") for level in LEVELS]
_DEVIATIONS = 4.0  # standard errors above chance that chance alone does not explain
_QUERIES = 100  # images that a check by chance needs; fewer are permuted several times


@dataclass(frozen=True)
class Check:
    """One line of an audit.

    Args:
        name: what was changed.
        recall: ``i2t_r1`` … ``t2i_r10`` in per cent; None where no scores came out.
        expected: what recall should do.
        verdict: whether it did.
    """

    name: str
    recall: dict[str, float] | None
    expected: str
    verdict: Verdict

    def __str__(self) -> str:
        found = self.recall
        values = "".join(f"{'-' if found is None else f'{found[key]:.1f}':>8}" for key in _KEYS)
        return f"{self.name:20}{values}   {self.verdict:14}{self.expected}"


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        checks: one by one, the evaluation as it is first.
        images: number of images.
        captions: number of captions.
    """

    checks: list[Check]
    images: int
    captions: int

    @property
    def verdict(self) -> Verdict:
        """``leak`` if any check says so; ``inconclusive`` near chance; else ``pass``."""
        found = {check.verdict for check in self.checks}
        return "leak" if "leak" in found else self.checks[0].verdict

    def __str__(self) -> str:
        lines = [
            header(self.images, self.captions),
            *map(str, self.checks),
            f"verdict: {self.verdict}",
        ]
        return "\n".join(lines)


def header(images: int, captions: int) -> str:
    """The title and the column heads of the table of an audit."""
    columns = "".join(f"{key.replace('_r', '@'):>8}" for key in _KEYS)
    return f"{images:,} images × {captions:,} captions\n{'':20}{columns}   {'verdict':14}expected"


def audit(
    score: Score | Matcher,
    data: Batch | Iterable[Batch] | Pairs | tuple[Any, Any, Tensor, Tensor],
    *,
    untrained: Score | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    report: Callable[[str], None] | None = None,
) -> Audit:
    """Find out whether a recall is earned: by pairs that are broken, and by what should not matter.

    Recall must fall to chance where

    - the pairs are permuted: every image takes the place of another one, ids and places stay;
    - the images, or the captions, are replaced by noise of the same size and spread;
    - the model is untrained.

    It must change by no more than 0.1 points where images and captions come in another order, in
    two shards (every second one; scores of all four blocks are computed on their own), with wrong
    values in the padding, and in batches of another size. Recall here is by ids: a caption matches
    the image that it belongs to, and no other.

    Chance is ``K / n`` for a caption, and for an image that of its captions to be among ``K`` drawn
    ones. A recall is above chance where it is 4 standard errors above it, the queries of an image
    counting as one.

    Args:
        score: ``score(images, texts, image_ids, text_image_ids)`` gives the ``(n, m)`` scores that
            an evaluation ranks by; it gets images and captions in the form of ``data``, all of
            them or some. Or a :class:`~itmkit.systems.Matcher`, which is encoded and evaluated,
            second stage and all.
        data: evaluation batches, such as a loader of :class:`~itmkit.data.ImageTextData`, which
            are joined in memory; or the four arguments of ``score``.
        untrained: the same as ``score`` with an untrained model; None leaves that check out. For a
            matcher it is made: the values of each of its parameters change places at random.
        limit: only the first so many images, with their captions; all where None.
        seed: of permutations and noise.
        batch_size: images that a matcher encodes at a time; of the check of batch sizes, a third.
        report: is called with every line of the table when it is known, such as ``print``.

    Returns:
        The checks, each with its recall and its verdict. ``leak``: recall did not do as it should.
        ``inconclusive``: it did, but that says nothing, as recall was near chance to begin with.

    Raises:
        InputError: data of another form, scores of the wrong shape, and what ``score`` raises.

    Example:
        An evaluation that gives each image away to its own captions:

        >>> def fused(images, texts, image_ids, text_image_ids):
        ...     own = (image_ids[:, None] == text_image_ids).float()
        ...     return (images + own @ texts) @ texts.T
        >>> ids = torch.arange(40)
        >>> found = audit(fused, (torch.randn(40, 8), torch.randn(40, 8), ids, ids))
        >>> found.verdict, found.checks[1].name, found.checks[1].verdict
        ('leak', 'pairs permuted', 'leak')
    """
    check_seed(seed=seed)
    pairs = as_pairs(data, limit)
    if isinstance(score, Matcher):
        base: Evaluation = MatcherEvaluation(score, batch_size)
    elif callable(score):
        base = ScoreEvaluation(score)
    else:
        raise InputError(f"score is {type_of(score)}; expected a function or a Matcher")
    found: list[Check] = []
    say = report or (lambda line: None)
    say(header(len(pairs.image_ids), len(pairs.text_image_ids)))
    for check in _checks(base, pairs, untrained, seed):
        found.append(check)
        say(str(check))
    result = Audit(found, len(pairs.image_ids), len(pairs.text_image_ids))
    say(f"verdict: {result.verdict}")
    return result


def _checks(base: Evaluation, pairs: Pairs, untrained: Score | None, seed: int) -> Iterator[Check]:
    generator = Generator().manual_seed(seed)
    queries = int(torch.isin(pairs.image_ids, pairs.text_image_ids).sum())
    rounds = range(max(1, -(-_QUERIES // queries)))
    chance = chance_of(pairs)
    recall = base.recall(pairs)
    limit = _limit(chance, queries)
    near_chance = all(recall[key] <= limit[key] for key in _KEYS)
    passed: Verdict = "inconclusive" if near_chance else "pass"
    by_chance = f"chance: R@1 {chance['i2t_r1']:.2f} and {chance['t2i_r1']:.2f}"
    yield Check("as evaluated", recall, by_chance, passed)

    def at_chance(name: str, recalls: Iterable[dict[str, float]]) -> Check:
        each = list(recalls)
        mean = {key: sum(one[key] for one in each) / len(each) for key in _KEYS}
        # Rounds are no further queries: a model may rank the same captions first in all of them.
        leaks = any(mean[key] > limit[key] for key in _KEYS)
        expected = f"R@1 at most {limit['i2t_r1']:.2f} and {limit['t2i_r1']:.2f}"
        return Check(name, mean, expected, "leak" if leaks else passed)

    def unchanged(name: str, other: dict[str, float]) -> Check:
        change = max(abs(other[key] - recall[key]) for key in _KEYS)
        expected = f"changed by {change:.2f}, at most {TOLERANCE}"
        return Check(name, other, expected, "leak" if change > TOLERANCE else passed)

    def with_images(make: Callable[[], Any]) -> Iterator[dict[str, float]]:
        return (base.recall(pairs._replace(images=make())) for _ in rounds)

    images, texts = pairs.images, pairs.texts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of ties, which noise may have
        others = with_images(lambda: taken(images, derangement(len(pairs.image_ids), generator)))
        yield at_chance("pairs permuted", others)
        yield at_chance("images are noise", with_images(lambda: noise(images, generator)))
        noisy = (base.recall(pairs._replace(texts=noise(texts, generator))) for _ in rounds)
        yield at_chance("captions are noise", noisy)
        if untrained is not None:
            yield at_chance("untrained model", [ScoreEvaluation(untrained).recall(pairs)])
        elif isinstance(base, MatcherEvaluation):
            yield at_chance("untrained model", (base.untrained(pairs, generator) for _ in rounds))
        yield unchanged("another order", base.recall(reordered(pairs, generator)))
        try:
            yield unchanged("two shards", base.recall(pairs, shards=2))
        except Exception as error:  # which the whole gallery did not have
            reason = " ".join(str(error).split())[:60]
            expected = f"cannot score shards: {type(error).__name__}: {reason}"
            yield Check("two shards", None, expected, "leak")
        padded = pairs._replace(images=with_wrong_padding(images), texts=with_wrong_padding(texts))
        if padded.images is not images or padded.texts is not texts:
            yield unchanged("wrong padding", base.recall(padded, trim=False))
        yield unchanged("another batch size", base.recall(pairs, small=True))


def chance_of(pairs: Pairs) -> dict[str, float]:
    """Recall of scores drawn at random, in per cent."""
    n, m = len(pairs.image_ids), len(pairs.text_image_ids)
    counts = pairs.text_image_ids.unique(return_counts=True)[1].tolist()

    each = (("i2t", counts, m), ("t2i", [1], n))
    return {
        f"{side}_r{k}": chance_recall(own, items, k) for side, own, items in each for k in LEVELS
    }


def _limit(chance: dict[str, float], queries: int) -> dict[str, float]:
    """The most that is still chance, in per cent, for a number of queries that know nothing."""
    limits = {}
    for key, value in chance.items():
        share = value / 100
        spread = _DEVIATIONS * math.sqrt(share * (1 - share) / queries) + 1 / queries
        limits[key] = 100 * (share + spread)
    return limits
