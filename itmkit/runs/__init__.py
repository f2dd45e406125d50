"""Runs of itmkit: train a system, measure it or encode with it, and record that in a folder.

``itmkit fit``, ``validate``, ``test`` and ``predict`` parse their options and call this.
"""

from itmkit.runs.ensemble import evaluate_ensemble
from itmkit.runs.initial_weights import load_initial_weights
from itmkit.runs.measure import Measured, measure
from itmkit.runs.record import RunRecord
from itmkit.runs.resumed_options import ResumedOptions
from itmkit.runs.run import Run
from itmkit.runs.trainer import make_trainer

__all__ = [
    "Measured",
    "ResumedOptions",
    "Run",
    "RunRecord",
    "evaluate_ensemble",
    "load_initial_weights",
    "make_trainer",
    "measure",
]
