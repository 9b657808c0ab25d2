"""What a check found, and the words it is said in."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ebca.errors import EbcaError


@dataclass(frozen=True)
class Finding:
    """One line of the report. level: "ok", "note" (could be better) or "problem"; remedy: what to do."""

    level: str
    topic: str
    text: str
    remedy: str = ""


def explain(error: BaseException) -> tuple[str, str]:
    """(what is wrong, what to do), the latter "" where nobody knows."""
    return (error.problem, error.remedy) if isinstance(error, EbcaError) else (str(error), "")


def version_text(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # Some builds (onnxruntime-gpu) install under another name.
        return "(version unknown)"


def size_text(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"
