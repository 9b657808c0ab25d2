"""The location of the user's cache, and how large it may grow."""

import os
from contextlib import suppress
from pathlib import Path

import platformdirs

from ebca.errors import EngineError, ParameterError

DEFAULT_LIMIT_GB = 40.0


def cache_folder() -> Path:
    """`EBCA_CACHE_DIR`, else the platform's cache folder; an absolute path, which need not exist.

    Raises:
        EngineError: this user has no home folder, as users of containers that are only a number.
    """
    if chosen := os.environ.get("EBCA_CACHE_DIR"):
        return Path(chosen).absolute()
    # Without a home folder, platformdirs raises RuntimeError, or (older versions) names a folder "~".
    with suppress(RuntimeError):
        folder = platformdirs.user_cache_path("ebca")
        if folder.is_absolute():
            return folder
    raise EngineError("there is no folder for prepared engines: this user has no home folder", "set EBCA_CACHE_DIR")


def cache_limit() -> float:
    """Bound of the cache in bytes: EBCA_CACHE_LIMIT_GB, else 40 GB. Raises ParameterError if it is not a number."""
    text = os.environ.get("EBCA_CACHE_LIMIT_GB") or str(DEFAULT_LIMIT_GB)
    try:
        return float(text) * 1e9
    except ValueError:
        raise ParameterError(f"EBCA_CACHE_LIMIT_GB is '{text}'", "give a number of gigabytes, e.g. 40") from None
