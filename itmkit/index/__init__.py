"""An index of pictures on disk: made once, kept up to date, searched by words or a picture."""

from itmkit.index.build import build_index
from itmkit.index.calibration import Calibration
from itmkit.index.columns import picture_columns
from itmkit.index.faiss_build import FaissBuild, faiss_sentences
from itmkit.index.merge import merge_indexes
from itmkit.index.search import Hit, Index, stored_model
from itmkit.index.update import Skipped, Update

__all__ = [
    "Calibration",
    "FaissBuild",
    "Hit",
    "Index",
    "Skipped",
    "Update",
    "build_index",
    "faiss_sentences",
    "merge_indexes",
    "picture_columns",
    "stored_model",
]
