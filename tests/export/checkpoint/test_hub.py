"""Models from the hub, without using the network: what is downloaded, and one clear line for every failure."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.checkpoints import WEIGHTS, Hub, edit_json, same_weights
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ebca.errors import ModelError
from ebca.export.checkpoint.load import load_checkpoint
from ebca.export.checkpoint.model import Checkpoint


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("failed", response=response)


def test_a_hub_model_is_loaded_from_the_files_it_needs(
    folder: Path, tiny: Checkpoint, set_hub: Callable[[Hub], Hub]
) -> None:
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").touch()
    (folder / "unet" / "diffusion_pytorch_model.bin").touch()
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").touch()
    stand_in = set_hub(Hub(folder))
    loaded = load_checkpoint("owner/name")
    assert same_weights(loaded.unet, tiny.unet)
    assert (loaded.name, loaded.source) == (
        "owner/name",
        {"kind": "hub", "id": "owner/name", "revision": "model"},
    )
    small, everything = stand_in.downloads
    assert not any(name.endswith(".safetensors") for name in small)
    weights = {name for name in everything if name.endswith((".safetensors", ".bin"))}
    assert weights == {f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"}


def test_an_unsupported_hub_model_is_refused_before_its_weights_are_fetched(
    folder: Path, set_hub: Callable[[Hub], Hub]
) -> None:
    edit_json(folder / "unet" / "config.json", addition_embed_type="text_image")
    stand_in = set_hub(Hub(folder))
    with pytest.raises(ModelError, match="addition_embed_type = 'text_image'"):
        load_checkpoint("owner/name")
    assert len(stand_in.downloads) == 1


def test_short_names_are_hub_ids(folder: Path, set_hub: Callable[[Hub], Hub]) -> None:
    set_hub(Hub(folder))
    assert load_checkpoint("sd-1.5").name == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(GatedRepoError, 403), "is gated: accept its licence .* HF_TOKEN or pass --token"),
        (http_error(HfHubHTTPError, 403), "is gated"),
        (http_error(RepositoryNotFoundError, 404), "check the spelling"),
        (http_error(RepositoryNotFoundError, 401), "set HF_TOKEN or pass --token"),
        (http_error(HfHubHTTPError, 401), "check the spelling"),
        (http_error(RevisionNotFoundError, 404), "has no revision 'v9'"),
        (http_error(HfHubHTTPError, 503), "the hub answered 503"),
        (ConnectionError("name not known"), "cannot reach the hub .*name not known.*check the network"),
        (OSError(errno.ENOSPC, "No space left"), "cannot store owner/name .*HF_HOME"),
    ],
)
def test_hub_failures_say_what_to_do(set_hub: Callable[[Hub], Hub], error: Exception, message: str) -> None:
    set_hub(Hub(error=error))
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint("owner/name", revision="v9")
    assert "\n" not in str(caught.value)


def test_errors_of_the_http_client_itself_are_explained(set_hub: Callable[[Hub], Hub]) -> None:
    """With a dead network the library lets its HTTP client's error through, which is no OSError."""
    client_error = HfHubHTTPError.__bases__[0]
    set_hub(Hub(error=client_error("no route")))
    with pytest.raises(ModelError, match=r"cannot reach the hub .*no route"):
        load_checkpoint("owner/name")


def test_offline_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real library, told not to use the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(ModelError, match=r"cannot reach the hub for CompVis/stable-diffusion-v1-4 .*pass its path"):
        load_checkpoint("sd-1.4", cache_dir=tmp_path)


def test_offline_with_a_cache(monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path, tiny: Checkpoint) -> None:
    """The real library finds an earlier download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = load_checkpoint("owner/name", cache_dir=tmp_path)
    assert loaded.source == {"kind": "hub", "id": "owner/name", "revision": commit}
    assert same_weights(loaded.unet, tiny.unet)
