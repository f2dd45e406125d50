"""What happens around a training step."""

from itmkit.callbacks.compile_modules import CompileModules
from itmkit.callbacks.freeze_until import FreezeUntil
from itmkit.callbacks.hard_negative_miner import HardNegativeMiner
from itmkit.callbacks.momentum_teacher import MomentumTeacher

__all__ = ["CompileModules", "FreezeUntil", "HardNegativeMiner", "MomentumTeacher"]
