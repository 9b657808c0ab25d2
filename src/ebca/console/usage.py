"""What all command lines have in common: short messages about wrong options, `--version`, paths."""

import argparse
import copy
import difflib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ebca.version import __version__

_LIBRARIES = ("onnxruntime", "openvino", "tensorrt", "numpy", "pillow")


class Parser(argparse.ArgumentParser):
    """A parser with `--version`, whose errors are at most three lines. Description and epilog are shown as they are.

    Args:
        program: the tool's name.
        libraries: packages that `--version` names if they are installed.
        options: as for `argparse.ArgumentParser`.
    """

    def __init__(self, program: str, *, libraries: Sequence[str] = _LIBRARIES, **options: Any) -> None:
        super().__init__(program, formatter_class=_Help, **options)
        self._words: list[str] = []
        self.add_argument(
            "--version", action=_Version, libraries=libraries, help="print the versions of ebca and of its libraries"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in the base class; remembers the words for messages."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with 2, the message, and the options that may have been meant."""
        # The first of several spellings is enough.
        message = re.sub(r"^argument ([^\s/]+)/\S+:", r"argument \1:", message)
        lines = []
        unknown = self._unknown_option()
        if unknown is not None:
            message = f"there is no option {unknown}"
            if meant := self._like(unknown):
                lines.append(f"did you mean {' or '.join(meant)}?")
        lines.insert(0, f"{self.prog}: error: {one_line(message)}")
        self.exit(2, "\n".join([*lines, f"see {self.prog} --help\n"]))

    def _unknown_option(self) -> str | None:
        """The first option on the command line that does not exist; a misspelt one is also why others are missing."""
        for word in self._words:
            if word == "--":
                return None
            flag = word.partition("=")[0]
            if len(flag) < 2 or not flag.startswith("-") or " " in word or self._is_number(word):
                continue
            known = self._option_string_actions
            if flag in known or (not flag.startswith("--") and flag[:2] in known):
                continue
            if not (self.allow_abbrev and any(option.startswith(flag) for option in known)):
                return flag
        return None

    def _is_number(self, word: str) -> bool:
        return self._negative_number_matcher.match(word) is not None

    def _like(self, flag: str) -> list[str]:
        shown = [a.option_strings for a in self._actions if a.help != argparse.SUPPRESS]
        names = [option[2:] for options in shown for option in options if option.startswith("--") and "_" not in option]
        asked = flag.lstrip("-").replace("_", "-").lower()
        found = [name for name in names if name.startswith(asked)]
        found = found or difflib.get_close_matches(asked, names, 1)
        found = found or [name for name in names if asked in name.split("-")]
        return [f"--{name}" for name in found[:3]]


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows each option without its spelling with underscores."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [option for option in action.option_strings if "_" not in option]
        return super()._format_action_invocation(shown)


class _Version(argparse.Action):
    """Prints one line: versions of ebca, of Python, and of libraries that are installed."""

    def __init__(self, option_strings: Sequence[str], dest: str, libraries: Sequence[str], help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self._libraries = libraries

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found = [f"Python {platform.python_version()}"]
        for name in self._libraries:
            try:
                found.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                continue
        print(f"ebca {__version__} ({', '.join(found)})")
        parser.exit()


def path(text: str) -> Path:
    """Type of an option that names a file or a folder. "~/" and "~user/" at the beginning are a user's home, also where
    the shell did not expand them: in quotes, and after "="."""
    try:
        # A file may be called "~x.png".
        return Path(text).expanduser() if text == "~" or "/" in text else Path(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"'{text}' is in the home of a user who does not exist") from None


def name_or_path(text: str) -> str:
    """Type of an option that takes names beside paths: a path as in `path`, everything else as it is."""
    return str(path(text)) if text.startswith("~") else text


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())
