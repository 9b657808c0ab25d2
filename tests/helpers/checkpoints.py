"""What tests of checkpoints share."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_weights(a: nn.Module | None, b: nn.Module | None) -> bool:
    assert a is not None and b is not None
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Hub:
    """Stands in for the hub: a repository that is a local folder, or an error for every request."""

    def __init__(self, repository: Path | None = None, error: Exception | None = None) -> None:
        self.repository = repository
        self.error = error
        self.downloads: list[list[str]] = []

    def model_info(self, repo: str, **_: Any) -> Any:
        if self.error is not None:
            raise self.error
        assert self.repository is not None
        files = [path for path in self.repository.rglob("*") if path.is_file()]
        names = [path.relative_to(self.repository).as_posix() for path in files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(
        self, repo: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False, **_: Any
    ) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        assert allow_patterns is not None
        self.downloads.append(allow_patterns)
        return str(self.repository)
