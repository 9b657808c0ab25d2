"""Files from the Hugging Face hub or its local cache, with errors that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ebca.errors import ModelError
from ebca.export.checkpoint.files import first_line

# The library has changed its HTTP client between versions; its own error always derives from the client's.
_HUB_ERRORS: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)


def fetch(
    repo: str,
    choose: Callable[[list[str]], list[str]],
    *,
    check: Callable[[Path], object] | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Download the files that `choose` picks from the repository's listing; returns the folder holding them.

    With `check`, small files are downloaded and checked first, so that an unsupported model is refused before its
    gigabytes are downloaded. If the hub cannot be reached, an earlier download is used.
    """

    def download(files: list[str]) -> Path:
        folder = snapshot_download(
            repo,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=files or ["model_index.json"],
        )
        return Path(folder)

    try:
        listing = HfApi().model_info(repo, revision=revision, token=token).siblings or []
        files = choose([entry.rfilename for entry in listing])
        if check is not None:
            check(download([name for name in files if not name.endswith(".safetensors")]))
        return download(files)
    except HFValidationError as error:
        raise ModelError(f"{repo!r} is not a hub id (owner/name): {error}") from error
    except _HUB_ERRORS as error:
        cached = _cached(repo, revision, cache_dir)
        if cached is not None:
            return cached
        raise explain(repo, revision, error) from error


def _cached(repo: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    try:
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except LocalEntryNotFoundError as error:
        # We never download all files of a repository; newer libraries report that with the folder attached.
        folder = getattr(error, "snapshot_path", None)
        return Path(folder) if folder else None


def explain(repo: str, revision: str | None, error: BaseException) -> ModelError:
    """One clear line for a failed hub request."""
    page = f"https://huggingface.co/{repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{repo} has no revision {revision!r}", f"see {page}/tree/main for its branches and tags")
    if isinstance(error, GatedRepoError) or status == 403:
        return ModelError(f"{repo} is gated: accept its licence on {page}, then set HF_TOKEN or pass --token")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return ModelError(
            f"the hub has no model {repo} that you may read: check the spelling",
            f"if {page} asks for a licence or a login, accept it there and set HF_TOKEN or pass --token",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        return ModelError(f"cannot store {repo} in the hub cache: {error}", "set HF_HOME to a folder with room")
    if status is not None:
        return ModelError(f"the hub answered {status} for {repo}", "try again later")
    reason = first_line(error).rstrip(".")
    return ModelError(
        f"cannot reach the hub for {repo} ({reason}), and it is not in the cache: check the "
        "network and HF_HUB_OFFLINE, point HF_HOME at a cache that has it, or download the folder elsewhere "
        "and pass its path"
    )
