"""The published systems, and what they have in common."""

from itmkit.systems.load import load_run
from itmkit.systems.matcher import Matcher
from itmkit.systems.mate import MATE
from itmkit.systems.schedule import WarmupCosine

__all__ = ["MATE", "Matcher", "WarmupCosine", "load_run"]
