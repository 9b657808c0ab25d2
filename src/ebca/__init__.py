"""ebca: the deployment runtime for Energy-Based Cross Attention on Stable Diffusion."""

__version__ = "0.1.0"

from ebca.errors import (
    BackendError,
    CancelledError,
    EbcaError,
    EngineError,
    ExportError,
    ModelError,
    NumericalError,
    ParameterError,
)
from ebca.runtime.control import EnergyControl
from ebca.runtime.denoiser import Denoised, Denoiser
from ebca.runtime.engine import Engine, load
from ebca.runtime.sampling import StepInfo
from ebca.runtime.schedules import Schedule
from ebca.runtime.session import Result, Session

__all__ = [
    "BackendError",
    "CancelledError",
    "Denoised",
    "Denoiser",
    "EbcaError",
    "EnergyControl",
    "Engine",
    "EngineError",
    "ExportError",
    "ModelError",
    "NumericalError",
    "ParameterError",
    "Result",
    "Schedule",
    "Session",
    "StepInfo",
    "load",
]
