"""What a stage reads, and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ebca.engines.contract.manifest import Component
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.options import ExportEvent, ExportOptions, OnProgress
from ebca.export.parity import HALF_LIMIT, LIMIT
from ebca.export.workspace import Workspace


@dataclass(frozen=True)
class StageResult:
    """What one stage, or several in a row, wrote into the workspace.

    Attributes:
        components: by name, in the order in which they were written.
        files: paths beside those of components, relative to the engine directory.
        sections: parts of the manifest, by the name of the `Manifest` field.
        parity: entries of the manifest's parity record.
        weight_bytes: bytes of weights that are done.
    """

    components: Mapping[str, Component] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    sections: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0

    def joined(self, later: "StageResult") -> "StageResult":
        """This result and that of a later stage as one."""
        return StageResult(
            {**self.components, **later.components},
            (*self.files, *later.files),
            {**self.sections, **later.sections},
            {**self.parity, **later.parity},
            self.weight_bytes + later.weight_bytes,
        )


@dataclass(frozen=True)
class Context:
    """What every stage may read.

    Attributes:
        workspace: where finished components and files are written and recorded.
        on_progress: receives the stages' reports.
        total: bytes of weights of the complete export.
        before: what earlier stages wrote.
    """

    checkpoint: Checkpoint
    options: ExportOptions
    workspace: Workspace
    on_progress: OnProgress
    total: int
    before: StageResult = field(default_factory=StageResult)

    @property
    def folder(self) -> Path:
        return self.workspace.folder

    def after(self, result: StageResult) -> "Context":
        """The context of the stage that follows one with this result."""
        return replace(self, before=self.before.joined(result))

    def report(self, text: str, done: int = 0) -> None:
        """Report work that starts, after `done` bytes of this stage."""
        self.on_progress(ExportEvent(text, self.before.weight_bytes + done, self.total))


Stage = Callable[[Context], StageResult]
"""Writes one part of an engine directory. It takes from the workspace whatever an interrupted export finished."""


def parity_limit(*, computes_half: bool) -> float:
    """The largest relative L2 error against PyTorch, by what a graph computes in."""
    return HALF_LIMIT if computes_half else LIMIT
