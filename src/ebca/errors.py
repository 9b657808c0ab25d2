"""The errors that a user can cause. Each names the thing, the value and the remedy.

Command-line tools print them as one line and exit with code 1. Other exceptions are bugs and keep their traceback.
"""


class EbcaError(Exception):
    """Base class of all errors that a user's input or environment can cause. As text: "problem; remedy".

    Attributes:
        problem: what is wrong: the thing and the value.
        remedy: what to do about it; "" if the problem implies it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class ModelError(EbcaError):
    """A checkpoint that cannot be found, read or exported."""


class ExportError(EbcaError):
    """An export that cannot be completed: no space, no permission, or an error over its limit."""


class EngineError(EbcaError):
    """An engine directory, or a file in it, that cannot be used."""


class BackendError(EbcaError):
    """An inference backend that is missing, or that cannot run the engine."""


class ParameterError(EbcaError, ValueError):
    """A call parameter with a wrong value, shape or dtype."""


class UnknownParameterError(ParameterError, TypeError):
    """A call parameter that does not exist; Python itself raises TypeError."""


class OutOfMemoryError(ParameterError):
    """A call that needs more memory than there is, on the host or on a device."""


class DeviceMemoryError(OutOfMemoryError):
    """A device has too little memory left for a call."""


class NumericalError(EbcaError, ArithmeticError):
    """A result that is not finite. The message names the first segment with such values."""


class CancelledError(EbcaError):
    """The caller's progress callback asked to stop. The session stays usable."""
