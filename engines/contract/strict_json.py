"""JSON text as untrusted input: what different parsers would read differently is refused."""

import json
import math
import re
from typing import Any

from ebca.engines.contract import limits
from ebca.engines.contract.checked import spelled
from ebca.errors import EngineError

# More digits than any 64-bit integer has. Longer ones are numbers like 1e30, as other parsers read them.
_DIGITS = 20
# Half of a character, which the other half has to follow.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(text: str) -> Any:
    """The document.

    Raises:
        EngineError: not JSON, or JSON with names that an object has twice, NaN, infinite numbers, unpaired surrogates,
            or too deep nesting.
    """
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else _finite(digits),
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise EngineError(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(document)
    if _SURROGATE.search(text):
        _check_unicode(document)
    return document


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise EngineError(f"an object has {spelled(name)} twice")
        found[name] = value
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise EngineError(f"the number {digits[:20]}... is too large")
    return value


def _refuse_constant(name: str) -> None:
    raise EngineError(f"{name} is not a number")


def _check_unicode(document: Any) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise EngineError("a text in it is not valid Unicode") from None


def _check_depth(document: Any) -> None:
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(limits.DEPTH):
        inner = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> EngineError:
    return EngineError(f"nested deeper than {limits.DEPTH} levels")
