"""API keys: who may call."""

import base64
import hashlib
import hmac
import re
from pathlib import Path

from ebca.errors import ParameterError

_SHORTEST = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Keys:
    """API keys by the name of their owner. Only digests are kept.

    Args:
        keys: name -> key.
    """

    def __init__(self, keys: dict[str, str]) -> None:
        self._digests = [(name, _digest(key)) for name, key in keys.items()]

    @classmethod
    def read(cls, file: Path) -> "Keys":
        """Read a file with one "NAME KEY" per line. Empty lines and lines that begin with # are skipped.

        Raises:
            ParameterError: it cannot be read, others may read it, or a line that is something else.
        """
        try:
            others = file.stat().st_mode & 0o077
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ParameterError(f"the key file '{file}' cannot be read: {error}", "check the path") from None
        if others:
            raise ParameterError(f"others may read the key file '{file}'", f"run `chmod 600 {file}`")
        found: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            # The line itself may be a secret.
            if len(words) != 2 or not _NAME.fullmatch(words[0]) or len(words[1]) < _SHORTEST or words[0] in found:
                raise ParameterError(
                    f"line {number} of the key file '{file}' cannot be used",
                    f"write NAME KEY, each name once, with a key of at least {_SHORTEST} characters",
                )
            found[words[0]] = words[1]
        if not found:
            raise ParameterError(f"the key file '{file}' has no keys", "write NAME KEY, one per line")
        return cls(found)

    def owner(self, authorization: str, key: str) -> str | None:
        """The name of the key in the headers `Authorization` (Bearer, or Basic with the key as password) and
        `X-API-Key`; None: there is no valid one. Takes as long for every wrong key."""
        given = _digest(key or _key_in(authorization))
        owner = None
        for name, digest in self._digests:
            if hmac.compare_digest(given, digest):
                owner = name
        return owner


def _key_in(authorization: str) -> str:
    kind, _, rest = authorization.partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""


def _digest(key: str) -> bytes:
    # Of one length, and what a file holds is not kept in memory.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
