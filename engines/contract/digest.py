"""The digest that a manifest carries of itself.

It is the SHA-256 of the file's bytes in which these 64 characters are zeros, so any host can check it without writing
JSON the same way. It covers every number that no file's digest covers.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_BLANK = "0" * 64
_HEX = re.compile("[0-9a-f]{64}")


def stamped(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest with its digest, which follows `format` and `version`. An older digest is replaced."""
    rest = {name: value for name, value in manifest.items() if name not in ("format", "version", "digest")}
    first = {name: manifest[name] for name in ("format", "version") if name in manifest}
    text = json.dumps({**first, "digest": _BLANK, **rest}, indent=1) + "\n"
    # The name is the first one of its kind.
    return text.replace(_BLANK, hashlib.sha256(text.encode()).hexdigest(), 1)


def matches(contents: bytes, digest: object) -> bool:
    """Whether a manifest's contents are those that were stamped.

    Args:
        contents: of the file.
        digest: the member `digest` that was read from them.
    """
    if not isinstance(digest, str) or not _HEX.fullmatch(digest):
        return False
    blank = contents.replace(digest.encode(), _BLANK.encode(), 1)
    return hashlib.sha256(blank).hexdigest() == digest
