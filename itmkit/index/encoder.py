"""What an index asks of the model that it is made and searched with."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from itmkit.data.preprocessing import Preprocessing
from itmkit.retrieval import Encoding
from itmkit.retrieval.model import RetrievalModel


class PictureEncoder(Protocol):
    """What an index is made with: :class:`itmkit.Retriever` is one."""

    @property
    def preprocessing(self) -> Preprocessing:
        """From a picture to pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal models alone."""
        ...

    @property
    def source(self) -> str | None:
        """Path or name that it can be loaded by; None where there is none."""
        ...

    def encode_pixels(self, pixels: Tensor) -> Encoding:
        """Encode preprocessed pictures ``(n, 3, H, W)`` uint8."""
        ...


class SearchModel(RetrievalModel, Protocol):
    """A model that says what of a picture its first stage reads: every ``Matcher``."""

    @property
    def score_fields(self) -> tuple[str, ...] | None:
        """Their names; None for all."""
        ...

    def uncorrected(self, vectors: Tensor) -> Tensor:
        """Vectors of pictures without what corrects their scores with sentences."""
        ...


class QueryEncoder(Protocol):
    """What a search is made with: :class:`itmkit.Retriever` is one."""

    @property
    def model(self) -> SearchModel:
        """Scores the encodings."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """From a picture to pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal models alone."""
        ...

    def encode_texts(self, texts: list[str]) -> Encoding:
        """Encode sentences."""
        ...

    def encode_images(self, images: list[Any]) -> Encoding:
        """Encode pictures: paths, PIL images or arrays."""
        ...
