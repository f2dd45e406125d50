"""What a matcher reads: datasets, captions as ids, and batches of both."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itmkit.data.batch import Batch, Images, Texts
    from itmkit.data.caption_noise import CaptionNoise
    from itmkit.data.collate import collate_images
    from itmkit.data.dataset import BadSampleError, ImageTextDataset, Regions
    from itmkit.data.extract import extract_features
    from itmkit.data.karpathy import KarpathyDataset
    from itmkit.data.module import ImageTextData
    from itmkit.data.precomp import PrecompDataset
    from itmkit.data.preprocessing import Preprocessing
    from itmkit.data.relations import box_relations
    from itmkit.data.shapes import ShapesDataset
    from itmkit.data.tokenizer import (
        Caption,
        Tokenizer,
        TransformersTokenizer,
        WordTokenizer,
        pad_texts,
    )
    from itmkit.data.vocabulary import Vocabulary

_HOME = {
    "BadSampleError": "dataset",
    "Batch": "batch",
    "Caption": "tokenizer",
    "CaptionNoise": "caption_noise",
    "ImageTextData": "module",
    "ImageTextDataset": "dataset",
    "Images": "batch",
    "KarpathyDataset": "karpathy",
    "PrecompDataset": "precomp",
    "Preprocessing": "preprocessing",
    "Regions": "dataset",
    "ShapesDataset": "shapes",
    "Texts": "batch",
    "Tokenizer": "tokenizer",
    "TransformersTokenizer": "tokenizer",
    "Vocabulary": "vocabulary",
    "WordTokenizer": "tokenizer",
    "box_relations": "relations",
    "collate_images": "collate",
    "extract_features": "extract",
    "pad_texts": "tokenizer",
}

__all__ = [
    "BadSampleError",
    "Batch",
    "Caption",
    "CaptionNoise",
    "ImageTextData",
    "ImageTextDataset",
    "Images",
    "KarpathyDataset",
    "PrecompDataset",
    "Preprocessing",
    "Regions",
    "ShapesDataset",
    "Texts",
    "Tokenizer",
    "TransformersTokenizer",
    "Vocabulary",
    "WordTokenizer",
    "box_relations",
    "collate_images",
    "extract_features",
    "pad_texts",
]


def __getattr__(name: str) -> Any:
    # A batch or a dataset is to be had without importing Lightning, which the data module needs.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
