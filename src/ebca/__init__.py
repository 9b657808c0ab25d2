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
from ebca.runtime.edits import Edit
from ebca.runtime.engine import Engine, load
from ebca.runtime.inversion import NoiseRegularization
from ebca.runtime.sampling import StepInfo
from ebca.runtime.schedules import Schedule
from ebca.runtime.session import Inverted, Result, Session
from ebca.runtime.tasks import RePaint
from ebca.runtime.telemetry import Energies

__all__ = [
    "BackendError",
    "CancelledError",
    "Denoised",
    "Denoiser",
    "EbcaError",
    "Edit",
    "Energies",
    "EnergyControl",
    "Engine",
    "EngineError",
    "ExportError",
    "Inverted",
    "ModelError",
    "NoiseRegularization",
    "NumericalError",
    "ParameterError",
    "RePaint",
    "Result",
    "Schedule",
    "Session",
    "StepInfo",
    "load",
]
