"""Scores of the pictures of an index, a tile of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError, check_finite
from itmkit.chunks import chunks
from itmkit.index import store
from itmkit.index.encoder import QueryEncoder
from itmkit.retrieval import Encoding, evaluating
from itmkit.retrieval.score import score_block

_TILE_BYTES = 1 << 25  # of fp32 that is scored at a time
_ROWS = 1024  # of vectors that are compared at a time
_ROUNDING = 2e-6  # of a cosine in fp32

Rows = np.ndarray[Any, np.dtype[np.int64]]


class ExactScores:
    """Scores of all pictures of an index, or of those of some rows.

    Args:
        stored: the index.
        encoder: with the model that it was made with.
    """

    def __init__(self, stored: store.Stored, encoder: QueryEncoder) -> None:
        self.fields = stored.fields
        self.encoder = encoder
        self.count = len(stored.items)

    def of_texts(self, texts: Encoding, rows: Rows | None = None) -> Tensor:
        """Scores ``(q, n)`` of sentences."""
        model = self.encoder.model
        texts = texts.to(model.device)
        scores = torch.empty(len(texts), self.count if rows is None else len(rows))
        with evaluating(model):
            for place, tile in self.tiles(model.score_fields or tuple(self.fields), rows):
                block = score_block(model, Encoding(**tile).to(model.device), texts)
                scores[:, place] = _finite(block.float().cpu(), place.start).T
        return scores

    def of_pictures(self, pictures: Encoding, rows: Rows | None = None) -> Tensor:
        """Cosines ``(q, n)`` with other pictures."""
        self.check_vectors()
        own = self._unit_vectors(pictures.vector.float().cpu())
        scores = torch.empty(len(own), self.count if rows is None else len(rows))
        for place, tile in self.tiles(("vector",), rows):
            cosines = self._unit_vectors(tile["vector"]) @ own.T
            scores[:, place] = _finite(cosines, place.start).T
        return scores

    def picture_queries(self, pictures: Encoding) -> Encoding:
        """Vectors whose products with those of the index rank them as :meth:`of_pictures` does."""
        self.check_vectors()
        plain = self.encoder.model.uncorrected(pictures.vector)
        missing = pictures.vector.shape[1] - plain.shape[1]
        return Encoding(vector=F.pad(plain, (0, missing)))  # products without the correction

    def close_pairs(self, threshold: float) -> Iterator[tuple[int, int, float]]:
        """Two rows and the cosine of their vectors, where it is at least a threshold."""
        self.check_vectors()
        for here, tile in self.tiles(("vector",)):
            own = self._unit_vectors(tile["vector"])
            for there, others in self.tiles(("vector",)):
                if there.start >= here.start:
                    units = self._unit_vectors(others["vector"])
                    for row, column, cosine in close_pairs(own, units, threshold):
                        if here.start + row < there.start + column:
                            yield here.start + row, there.start + column, cosine

    def tiles(
        self, names: tuple[str, ...], rows: Rows | None = None
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Fields in fp32, as many rows at a time as fit, and the place of these rows."""
        width = sum(4 * int(np.prod(self.fields[name].shape[1:])) for name in names)
        step = max(1, _TILE_BYTES // max(width, 1))
        for part in chunks(self.count if rows is None else len(rows), step):
            own = part if rows is None else rows[part]
            yield part, {name: self._tensor(name, own) for name in names}

    def encoding(self, rows: Rows) -> Encoding:
        """All fields of some rows, in fp32."""
        return Encoding(**{name: self._tensor(name, rows) for name in self.fields})

    def vectors(self, rows: Rows) -> Tensor:
        """The vectors ``(n, D)`` of some rows, in fp32."""
        return self._tensor("vector", rows)

    def check_vectors(self) -> None:
        """Raise unless a picture has one vector.

        Raises:
            InputError: with the model, which makes none.
        """
        if "vector" not in self.fields:
            raise InputError(
                f"{type(self.encoder.model).__name__} makes no vector of a picture that could be "
                "compared with another picture's; expected a search by words"
            )

    def _unit_vectors(self, vectors: Tensor) -> Tensor:
        """What pictures are compared with each other by: no correction for sentences is in it."""
        return F.normalize(self.encoder.model.uncorrected(vectors), dim=1)

    def _tensor(self, name: str, rows: slice | Rows) -> Tensor:
        tensor = torch.from_numpy(self.fields[name][rows])
        return tensor.float() if tensor.is_floating_point() else tensor


def close_pairs(one: Tensor, other: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of rows of two stacks of unit vectors whose cosine is at least a threshold.

    Equal vectors have the cosine 1 but for rounding, and so reach a threshold of 1.

    Returns:
        Row of the one, row of the other, and their cosine, in the order of the rows.

    Example:
        >>> close_pairs(torch.eye(2), torch.tensor([[0.0, 1.0]]), 0.9)
        [(1, 0, 1.0)]
    """
    pairs = []
    for start in range(0, len(one), _ROWS):
        cosines = one[start : start + _ROWS] @ other.T
        cosines.clamp_(max=1)
        rows, columns = (cosines >= threshold - _ROUNDING).nonzero(as_tuple=True)
        values = cosines[rows, columns].tolist()
        pairs += list(zip((rows + start).tolist(), columns.tolist(), values, strict=True))
    return pairs


def best_places(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of some scores ``(n,)`` and their places; of equal ones the first.

    Example:
        >>> best_places(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3)[1].tolist()
        [1, 3, 2]
    """
    k = min(k, len(scores))
    if not k:
        return scores, torch.empty(0, dtype=torch.int64)
    worst = scores.topk(k, sorted=False).values.min()
    places = (scores >= worst).nonzero()[:, 0]  # more than k where some are equal
    values, order = scores[places].sort(descending=True, stable=True)
    return values[:k], places[order[:k]]


def _finite(scores: Tensor, start: int) -> Tensor:
    """Scores ``(n, q)`` of pictures from number ``start`` on."""
    check_finite(scores, lambda row, _: f"the score of picture {start + row}")
    return scores
