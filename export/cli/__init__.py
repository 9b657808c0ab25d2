"""ebca-export: a checkpoint becomes an engine directory."""

from ebca.export.cli.arguments import parser
from ebca.export.cli.run import main

__all__ = ["main", "parser"]
