"""The published systems, and what they have in common."""

from itmkit.systems.daim import DAIM
from itmkit.systems.dual_encoder import DualEncoder
from itmkit.systems.load import find_run, load_run
from itmkit.systems.matcher import Matcher, cosine_scores
from itmkit.systems.mate import MATE
from itmkit.systems.schedule import WarmupCosine
from itmkit.systems.tvrn import TVRN

__all__ = [
    "DAIM",
    "MATE",
    "TVRN",
    "DualEncoder",
    "Matcher",
    "WarmupCosine",
    "cosine_scores",
    "find_run",
    "load_run",
]
