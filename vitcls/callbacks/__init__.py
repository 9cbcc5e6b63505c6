"""What happens around the steps: checkpoints, the record of a run, interruption, prediction files."""

from vitcls.callbacks.answers import TestAnswers
from vitcls.callbacks.averaging import AveragedEpochs, AveragedWeights
from vitcls.callbacks.bad_images import BadImageCount
from vitcls.callbacks.bad_steps import BadSteps
from vitcls.callbacks.checkpoint import RunCheckpoint
from vitcls.callbacks.epoch_so_far import EpochSoFar
from vitcls.callbacks.gradients import GradientCheck
from vitcls.callbacks.interrupt import GracefulInterrupt
from vitcls.callbacks.memory import MemoryAdvice
from vitcls.callbacks.monitors import check_monitors
from vitcls.callbacks.plateau import RateOnPlateau
from vitcls.callbacks.predictions import PredictionWriter
from vitcls.callbacks.progressive import ProgressiveSize
from vitcls.callbacks.resume import AverageIsKept, ConfiguredPatience
from vitcls.callbacks.waiting import DataWait

__all__ = [
    "AverageIsKept",
    "AveragedEpochs",
    "AveragedWeights",
    "BadImageCount",
    "BadSteps",
    "ConfiguredPatience",
    "DataWait",
    "EpochSoFar",
    "GracefulInterrupt",
    "GradientCheck",
    "MemoryAdvice",
    "PredictionWriter",
    "ProgressiveSize",
    "RateOnPlateau",
    "RunCheckpoint",
    "TestAnswers",
    "check_monitors",
]
