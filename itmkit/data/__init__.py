"""What a matcher reads: datasets, captions as ids, and batches of both."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itmkit.data.batch import Batch, Images, Texts
    from itmkit.data.caption_noise import CaptionNoise
    from itmkit.data.captioned_folder import CaptionedFolder, table_captions
    from itmkit.data.captions import Captions
    from itmkit.data.convert import convert_captions, convert_features
    from itmkit.data.dataset import CaptionedImages, ImageTextDataset
    from itmkit.data.extract import extract_features
    from itmkit.data.extract_text import extract_text_features
    from itmkit.data.images import BadSampleError, ImageSource, Regions, collate_images
    from itmkit.data.karpathy import KarpathyDataset, karpathy_captions
    from itmkit.data.module import ImageTextData
    from itmkit.data.photos import PackedPhotos, PhotoFolder, Photos
    from itmkit.data.picture_files import (
        DatasetPictures,
        PackedPictures,
        PictureFile,
        open_pictures,
    )
    from itmkit.data.precomp import PrecompDataset, scan_captions
    from itmkit.data.preprocessing import Preprocessing
    from itmkit.data.relations import box_relations
    from itmkit.data.shapes import ShapesDataset
    from itmkit.data.stored_features import StoredFeatures
    from itmkit.data.swapped_captions import SwappedCaptions
    from itmkit.data.tokenizer import (
        Caption,
        Tokenizer,
        TransformersTokenizer,
        WordTokenizer,
        pad_texts,
    )
    from itmkit.data.vocabulary import Vocabulary

_HOME = {
    "BadSampleError": "images",
    "Batch": "batch",
    "Caption": "tokenizer",
    "CaptionNoise": "caption_noise",
    "CaptionedFolder": "captioned_folder",
    "CaptionedImages": "dataset",
    "Captions": "captions",
    "DatasetPictures": "picture_files",
    "ImageSource": "images",
    "ImageTextData": "module",
    "ImageTextDataset": "dataset",
    "Images": "batch",
    "KarpathyDataset": "karpathy",
    "PackedPhotos": "photos",
    "PackedPictures": "picture_files",
    "PhotoFolder": "photos",
    "Photos": "photos",
    "PictureFile": "picture_files",
    "PrecompDataset": "precomp",
    "Regions": "images",
    "Preprocessing": "preprocessing",
    "ShapesDataset": "shapes",
    "StoredFeatures": "stored_features",
    "SwappedCaptions": "swapped_captions",
    "Texts": "batch",
    "Tokenizer": "tokenizer",
    "TransformersTokenizer": "tokenizer",
    "Vocabulary": "vocabulary",
    "WordTokenizer": "tokenizer",
    "box_relations": "relations",
    "collate_images": "images",
    "convert_captions": "convert",
    "convert_features": "convert",
    "extract_features": "extract",
    "extract_text_features": "extract_text",
    "karpathy_captions": "karpathy",
    "open_pictures": "picture_files",
    "pad_texts": "tokenizer",
    "scan_captions": "precomp",
    "table_captions": "captioned_folder",
}

__all__ = [
    "BadSampleError",
    "Batch",
    "Caption",
    "CaptionNoise",
    "CaptionedFolder",
    "CaptionedImages",
    "Captions",
    "DatasetPictures",
    "ImageSource",
    "ImageTextData",
    "ImageTextDataset",
    "Images",
    "KarpathyDataset",
    "PackedPhotos",
    "PackedPictures",
    "PhotoFolder",
    "Photos",
    "PictureFile",
    "PrecompDataset",
    "Preprocessing",
    "Regions",
    "ShapesDataset",
    "StoredFeatures",
    "SwappedCaptions",
    "Texts",
    "Tokenizer",
    "TransformersTokenizer",
    "Vocabulary",
    "WordTokenizer",
    "box_relations",
    "collate_images",
    "convert_captions",
    "convert_features",
    "extract_features",
    "extract_text_features",
    "karpathy_captions",
    "open_pictures",
    "pad_texts",
    "scan_captions",
    "table_captions",
]


def __getattr__(name: str) -> Any:
    # On demand: a batch or a dataset does not need Lightning, which the data module imports.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
