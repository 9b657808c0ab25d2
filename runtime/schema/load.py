"""Reads schema.toml into dataclasses, and refuses what the generator could not write."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema.toml")
LANGUAGES = ("python", "c")
ERRORS = ("parameter", "memory", "engine", "backend", "numerical", "cancelled", "unsupported", "warning")

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Member:
    """One value of an enum."""

    name: str
    number: int
    doc: str = ""
    python: str | None = None  # class in ebca.errors


@dataclass(frozen=True)
class Enum:
    name: str  # ebca_status
    prefix: str
    members: tuple[Member, ...]
    flags: bool = False  # constants of an enum without a name, to be combined


@dataclass(frozen=True)
class Field:
    """One field of a struct. `default` is None where the _init function leaves it 0 or NULL."""

    type: str
    name: str
    length: int = 0  # of an array
    default: Any = None
    doc: str = ""
    group: str = ""
    since: str = ""  # the release that added it to a struct of an earlier one
    python: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Struct:
    name: str  # ebca_generate_params
    doc: str
    fields: tuple[Field, ...]
    init: bool  # has an _init function
    defaults: str | None  # name of the table of defaults in Python


@dataclass(frozen=True)
class Text:
    """A rule in one language. `values` are the placeholders left in it, in the order of their first use."""

    id: str
    error: str
    problem: str
    remedy: str

    @property
    def values(self) -> list[str]:
        return list(dict.fromkeys(_PLACEHOLDER.findall(self.problem + self.remedy)))


@dataclass(frozen=True)
class Schema:
    abi_version: int
    constants: Mapping[str, Mapping[str, Any]]
    limits: Mapping[str, Mapping[str, Any]]
    manifest_limits: Mapping[str, Mapping[str, Any]]
    status: Enum
    enums: tuple[Enum, ...]
    structs: tuple[Struct, ...]
    rules: Mapping[str, tuple[Text, ...]]  # by language


def load(path: Path = SCHEMA) -> Schema:
    """Raises ValueError for a rule with an unknown error, or a language that is none."""
    with path.open("rb") as stream:
        data = tomllib.load(stream)
    names = data["names"]
    return Schema(
        data["abi"]["version"],
        data["constants"],
        data["limits"],
        data["manifest_limits"],
        _enum("ebca_status", data["status"]),
        tuple(_enum(f"ebca_{name}", each) for name, each in data["enums"].items()),
        tuple(_struct(name, each) for name, each in data["structs"].items()),
        {
            language: tuple(
                _text(language, id, rule, names)
                for id, rule in data["rules"].items()
                if rule.get("only", language) == language
            )
            for language in LANGUAGES
        },
    )


def _enum(name: str, data: Mapping[str, Any]) -> Enum:
    members = tuple(Member(**value) for value in data["values"])
    return Enum(name, data["prefix"], members, data.get("flags", False))


def _struct(name: str, data: Mapping[str, Any]) -> Struct:
    size = (Field("size_t", "struct_size"),) if data.get("sized") else ()
    room = data.get("reserved", 0)
    reserved = (Field("uint64_t", "reserved", room, doc="zero"),) if room else ()
    fields = (*size, *(Field(**field) for field in data["fields"]), *reserved)
    if list(fields) != sorted(fields, key=lambda field: bool(field.since)):
        raise ValueError(f"ebca_{name} has a field without `since` after one that has it")
    if bool(size) == bool(room):
        raise ValueError(f"ebca_{name} needs either struct_size or reserved words")
    return Struct(f"ebca_{name}", data["doc"], fields, data.get("init", False), data.get("defaults"))


def _text(language: str, id: str, rule: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]) -> Text:
    if unknown := rule.keys() - {"error", "only", "problem", "remedy", *LANGUAGES}:
        raise ValueError(f"rule {id} has the unknown entries {sorted(unknown)}")
    if rule["error"] not in ERRORS or rule.get("only", language) not in LANGUAGES:
        raise ValueError(f"rule {id} has the error {rule['error']!r} for {rule.get('only', 'both languages')}")
    own = {**rule, **rule.get(language, {})}

    def resolved(text: str) -> str:
        return _PLACEHOLDER.sub(lambda m: names[m[1]][language] if m[1] in names else m[0], text)

    return Text(id, rule["error"], resolved(own["problem"]), resolved(own.get("remedy", "")))
