"""The location of the user's cache, and how large it may grow."""

import os
from pathlib import Path

import platformdirs

from ebca.errors import ParameterError

DEFAULT_LIMIT_GB = 40.0


def cache_folder() -> Path:
    """`EBCA_CACHE_DIR`, else the platform's cache folder."""
    return Path(os.environ.get("EBCA_CACHE_DIR") or platformdirs.user_cache_path("ebca"))


def cache_limit() -> float:
    """Bound of the cache in bytes: EBCA_CACHE_LIMIT_GB, else 40 GB. Raises ParameterError if it is not a number."""
    text = os.environ.get("EBCA_CACHE_LIMIT_GB", str(DEFAULT_LIMIT_GB))
    try:
        return float(text) * 1e9
    except ValueError:
        raise ParameterError(f"EBCA_CACHE_LIMIT_GB is '{text}'", "give a number of gigabytes, e.g. 40") from None
