"""ebca: the deployment runtime for Energy-Based Cross Attention on Stable Diffusion."""

from ebca.errors import (
    BackendError,
    CancelledError,
    EbcaError,
    EngineError,
    ExportError,
    ModelError,
    NumericalError,
    OutOfMemoryError,
    ParameterError,
)
from ebca.runtime.conditioning.controlnets import Control
from ebca.runtime.conditioning.edits import Edit
from ebca.runtime.conditioning.schedules import Schedule
from ebca.runtime.denoiser import Denoised, Denoiser
from ebca.runtime.engine import Engine, load
from ebca.runtime.execution.control import EnergyControl
from ebca.runtime.images.files import read_parameters
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.request.serialization import read_request
from ebca.runtime.results import Inverted, Result
from ebca.runtime.sampling.inversion import NoiseRegularization
from ebca.runtime.sampling.progress import StepInfo
from ebca.runtime.sampling.repaint import RePaint
from ebca.runtime.session import Session
from ebca.runtime.telemetry.energies import Energies
from ebca.version import __version__

__all__ = [
    "BackendError",
    "CancelledError",
    "Control",
    "Denoised",
    "Denoiser",
    "EbcaError",
    "Edit",
    "Energies",
    "EnergyControl",
    "Engine",
    "EngineError",
    "ExportError",
    "GenerateRequest",
    "Inverted",
    "ModelError",
    "NoiseRegularization",
    "NumericalError",
    "OutOfMemoryError",
    "ParameterError",
    "RePaint",
    "Result",
    "Schedule",
    "Session",
    "StepInfo",
    "__version__",
    "load",
    "read_parameters",
    "read_request",
]
