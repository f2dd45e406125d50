"""What is wrong with a dataset: pairs that do not match, images in two splits, odd captions."""

from itmkit.data_audit.captions import CaptionStatistics, caption_statistics
from itmkit.data_audit.duplicates import Duplicate, duplicate_images
from itmkit.data_audit.folder import audit_data
from itmkit.data_audit.mismatch import Suspect, rank_mismatches

__all__ = [
    "CaptionStatistics",
    "Duplicate",
    "Suspect",
    "audit_data",
    "caption_statistics",
    "duplicate_images",
    "rank_mismatches",
]
