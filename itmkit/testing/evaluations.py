"""From images and captions to recall: by anyone's scores, or as itmkit evaluates a matcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from itmkit.checks import InputError, check_shape, type_of
from itmkit.data.batch import Batch
from itmkit.data.padding import trimmed
from itmkit.metrics.functional import cross_modal_recall
from itmkit.retrieval import Gallery, encode, evaluate
from itmkit.systems import Matcher
from itmkit.testing.pairs import Pairs, part_of, shards_of

Score = Callable[[Any, Any, Tensor, Tensor], Tensor]


class Evaluation(Protocol):
    """From images and captions to recall."""

    def recall(
        self, pairs: Pairs, *, shards: int = 1, small: bool = False, trim: bool = True
    ) -> dict[str, float]:
        """Recall of the whole; in interleaved shards, in small batches, or without trimming."""


@dataclass
class ScoreEvaluation:
    """By a function, which gets the whole gallery in one call unless an argument splits it."""

    score: Score

    @torch.no_grad()
    def recall(
        self, pairs: Pairs, *, shards: int = 1, small: bool = False, trim: bool = True
    ) -> dict[str, float]:
        n, m = len(pairs.image_ids), len(pairs.text_image_ids)
        all_rows, all_columns = (
            list(torch.arange(k).tensor_split(min(k, 5))) if small else shards_of(k, shards)
            for k in (n, m)
        )
        scores: Tensor | None = None
        for rows in all_rows:
            for columns in all_columns:
                whole = len(rows) == n and len(columns) == m
                block = self.score(*(pairs if whole else part_of(pairs, rows, columns)))
                if not isinstance(block, Tensor):
                    raise InputError(f"score gives {type_of(block)}; expected a tensor (n, m)")
                check_shape((len(rows), len(columns)), **{"what score gives": block})
                if scores is None:
                    scores = block.new_empty(n, m)
                scores[rows[:, None], columns] = block
        assert scores is not None
        return cross_modal_recall(scores, pairs.image_ids, pairs.text_image_ids)


@dataclass
class MatcherEvaluation:
    """By what itmkit evaluates with: encodings in batches, scores in blocks, a second stage."""

    matcher: Matcher
    batch_size: int

    def recall(
        self, pairs: Pairs, *, shards: int = 1, small: bool = False, trim: bool = True
    ) -> dict[str, float]:
        n, m = len(pairs.image_ids), len(pairs.text_image_ids)
        size = self.batch_size // 3 + 1 if small else self.batch_size
        parts = [
            encode(self.matcher, self._batches(pairs, rows, columns, size, trim))
            for rows, columns in zip(shards_of(n, shards), shards_of(m, shards), strict=True)
        ]
        gallery = Gallery.cat(parts) if shards > 1 else parts[0]
        return evaluate(self.matcher, gallery, chunk_size=100 if small else 256)

    def _batches(
        self, pairs: Pairs, rows: Tensor, columns: Tensor, size: int, trim: bool
    ) -> Iterator[Batch]:
        count = -(-len(rows) // size)
        for own, captions in zip(
            rows.tensor_split(count), columns.tensor_split(count), strict=True
        ):
            images, texts, image_ids, owners = part_of(pairs, own, captions)
            if trim:
                images, texts = trimmed(images), trimmed(texts)
            yield Batch(images, texts, image_ids, owners, captions)

    def untrained(self, pairs: Pairs, generator: Generator) -> dict[str, float]:
        """Recall after the values of each parameter have changed places; they are put back."""
        kept = [(weights, weights.detach().clone()) for weights in self.matcher.parameters()]
        try:
            with torch.no_grad():
                for weights, values in kept:
                    order = torch.randperm(values.numel(), generator=generator)
                    weights.copy_(values.flatten()[order.to(values.device)].view_as(values))
            return self.recall(pairs)
        finally:
            with torch.no_grad():
                for weights, values in kept:
                    weights.copy_(values)
