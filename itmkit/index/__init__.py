"""An index of pictures on disk: made once, kept up to date, searched by words or a picture."""

from itmkit.index.build import Skipped, Update, build_index, merge_indexes
from itmkit.index.calibration import Calibration
from itmkit.index.items import picture_columns
from itmkit.index.search import Hit, Index, stored_model

__all__ = [
    "Calibration",
    "Hit",
    "Index",
    "Skipped",
    "Update",
    "build_index",
    "merge_indexes",
    "picture_columns",
    "stored_model",
]
