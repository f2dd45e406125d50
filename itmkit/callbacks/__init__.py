"""What happens around a training step."""

from itmkit.callbacks.momentum_teacher import MomentumTeacher

__all__ = ["MomentumTeacher"]
