"""What retrieval asks of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from itmkit.retrieval.encoding import Encoding

if TYPE_CHECKING:
    from itmkit.data.batch import Images, Texts


class ScoringModel(Protocol):
    """A module that scores encoded images and captions, and may re-rank the best pairs.

    ``rerank`` is called only with ``rerank_top_k > 0``.
    """

    @property
    def device(self) -> torch.device:
        """Where the parameters are; inputs are moved there."""

    @property
    def rerank_top_k(self) -> int:
        """How many candidates of a query are re-ranked; 0 for none."""

    @property
    def rerank_weight(self) -> float:
        """Share of the pair score in the blended score, in [0, 1]."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the module and all modules in it."""

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        """Score all pairs, ``(n, m)`` fp32."""

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        """Score the ``(p, 2)`` pairs (image row, text row), ``(p,)`` fp32."""


class RetrievalModel(ScoringModel, Protocol):
    """A :class:`ScoringModel` that encodes images and captions."""

    def encode_image(self, images: Images) -> Encoding:
        """Encode ``n`` images, one row each."""

    def encode_text(self, texts: Texts) -> Encoding:
        """Encode ``m`` captions, one row each."""
