"""Where a model can be: a path of this machine, or a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from ebca.errors import ModelError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
FILE_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


def expanded(named: str | Path, what: str) -> Path:
    """A path with `~` as the user's own folder, which a shell leaves as it is in quotes. It need not exist.

    Raises:
        ModelError: no path can be called so, or there is no such user.
    """
    try:
        path = Path(named).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        shown, reason = str(named)[:80], getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ModelError(f"{what} {shown!r} cannot be found: {reason}", "check its path") from None
    return path
