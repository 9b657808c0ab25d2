"""What all parts of a visit know."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ebca.bench.gpu_check.packed.archive import SUFFIX
from ebca.bench.gpu_check.results import Skipped, write_json
from ebca.engines.contract import manifest as manifests

BACKEND: Final = "onnxruntime-cuda"
DEFAULT_MODEL: Final = "random-sd-1.5"


@dataclass(frozen=True)
class Visit:
    """Where things are, and what was asked for.

    output: folder of the results.
    engines: folder of engine directories, packed or not, by the names that `table.PARTS` has for them.
    export: export those that are missing.
    model: checkpoint to export and to compare with; None: the one that the directory `model` was exported from.
    capability: compute capability of the GPU, "9.0".
    wanted: names of the engine directories that the parts of this run read.
    patience: every limit is multiplied by this.
    """

    output: Path
    engines: Path | None
    export: bool
    model: str | None
    capability: str
    wanted: tuple[str, ...] = ()
    patience: float = 1.0

    @property
    def made(self) -> Path:
        """Folder of the engine directories that were unpacked or exported here."""
        return self.output / "engines"

    def packed(self, name: str) -> Path | None:
        """The packed form of an engine directory; None if there is none."""
        file = None if self.engines is None else self.engines / f"{name}{SUFFIX}"
        return file if file is not None and file.is_file() else None

    def find(self, name: str) -> Path | None:
        """An engine directory; None if it is not there yet."""
        for folder in (self.engines, self.made):
            if folder is not None and (folder / name / manifests.FILE_NAME).is_file():
                return folder / name
        return None

    def engine(self, name: str) -> Path:
        """An engine directory. Raises Skipped if it is not there."""
        found = self.find(name)
        if found is None:
            raise Skipped(
                f"there is no engine directory '{name}'; put it into the folder of --engines, or use --export"
            )
        return found

    def checkpoint(self) -> str:
        """What `model` was exported from, as `ebca-export --model` takes it. Raises Skipped if that is unknown."""
        if self.model is not None:
            return self.model
        source = manifests.read(self.engine("model")).model.get("source") or {}
        if source.get("kind") not in ("built-in", "hub"):
            raise Skipped("the engine directory does not say which checkpoint it is from; name it with --model")
        return str(source["id"])

    def write(self, file: Path) -> None:
        data = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        write_json(file, data)

    @classmethod
    def read(cls, file: Path) -> "Visit":
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        engines = data["engines"]
        return cls(
            **{
                **data,
                "output": Path(data["output"]),
                "engines": None if engines is None else Path(engines),
                "wanted": tuple(data["wanted"]),
            }
        )
