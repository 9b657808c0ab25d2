"""Findings of the checks, and how values are shown in them."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ebca.errors import EbcaError


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "ok", "note" (could be better) or "problem".
        topic: the thing that was checked.
        text: the finding.
        remedy: what to do; "" if there is nothing to do.
    """

    level: str
    topic: str
    text: str
    remedy: str = ""


def explain(error: BaseException) -> tuple[str, str]:
    """(problem, remedy) of an error; the remedy is "" if none is known."""
    return (error.problem, error.remedy) if isinstance(error, EbcaError) else (str(error), "")


def version_text(package: str) -> str:
    """Installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        # Some builds (onnxruntime-gpu) install under another name.
        return "(version unknown)"


def size_text(nbytes: float) -> str:
    """A number of bytes in MB or GB."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
