"""Every error a user can cause. Each message names the thing, the value and the remedy.

The command-line tools print these as one line and exit with code 1; anything else is a bug and keeps its traceback.
"""


class EbcaError(Exception):
    """Base of all errors that a user's input or environment can cause.

    Attributes:
        problem: what is wrong: the thing and the value.
        remedy: what to do about it; "" where nothing can be done, or where the problem says it.
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
    """An export that cannot be finished: no room, no permission, parity over its limit."""


class EngineError(EbcaError):
    """An engine directory, or a file in it, that cannot be used."""


class BackendError(EbcaError):
    """An inference backend that is missing or cannot run the engine."""


class ParameterError(EbcaError, ValueError):
    """A call parameter with a wrong value, shape or dtype."""


class NumericalError(EbcaError, ArithmeticError):
    """A result that is not finite; the message names the first segment where it happened."""


class CancelledError(EbcaError):
    """The caller's progress callback asked to stop. The session stays usable."""
