"""A hostile or damaged manifest.json raises a clear EngineError, and nothing else."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebca.engines.contract import manifest as manifests
from ebca.errors import EngineError


@pytest.fixture(scope="module")
def data(tiny_engine_dir: Path) -> dict[str, Any]:
    return dict(json.loads((tiny_engine_dir / manifests.FILE_NAME).read_text()))


def _write(folder: Path, data: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / manifests.FILE_NAME).write_text(json.dumps(data))
    return folder


def test_round_trip(tiny_engine_dir: Path, tmp_path: Path) -> None:
    manifest = manifests.read(tiny_engine_dir)
    (tmp_path / manifests.FILE_NAME).write_text(manifest.to_json())
    assert manifests.read(tmp_path) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": manifests.VERSION + 1}, "upgrade ebca"),
        ({"version": 0}, "version 0"),
        ({"version": "1"}, "version '1'"),
        ({"format": "other"}, "not an ebca manifest"),
        ({"unet": {}}, "is broken"),
        ({"components": None}, "is broken"),
    ],
)
def test_wrong_fields_are_refused(data: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=message):
        manifests.read(_write(tmp_path, {**data, **change}))


def test_the_guidance_scale_has_a_default_and_must_be_finite(data: dict[str, Any], tmp_path: Path) -> None:
    model = {k: v for k, v in data["model"].items() if k != "guidance_scale"}
    assert data["model"]["guidance_scale"] == 7.5
    assert manifests.read(_write(tmp_path, {**data, "model": model})).guidance_scale == 7.5
    assert manifests.read(_write(tmp_path, {**data, "model": {**model, "guidance_scale": 3}})).guidance_scale == 3
    for wrong in ("high", None, float("nan")):
        with pytest.raises(EngineError, match="is broken"):
            manifests.read(_write(tmp_path, {**data, "model": {**model, "guidance_scale": wrong}}))


def test_missing_folders_manifests_and_broken_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        manifests.read(tmp_path / "absent")
    with pytest.raises(EngineError, match="did not finish"):
        manifests.read(tmp_path)
    (tmp_path / manifests.FILE_NAME).write_text('{"format": "ebca-engine", "vers')
    with pytest.raises(EngineError, match="cannot be read"):
        manifests.read(tmp_path)
    (tmp_path / manifests.FILE_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="cannot be read"):
        manifests.read(tmp_path)


def test_the_bound_of_contexts_is_a_positive_integer(data: dict[str, Any], tmp_path: Path) -> None:
    assert manifests.read(_write(tmp_path, data)).unet.max_contexts is None
    bounded = manifests.read(_write(tmp_path, {**data, "unet": {**data["unet"], "max_contexts": 3}}))
    assert bounded.unet.max_contexts == 3
    for wrong in (0, "3", 2.0, True):
        with pytest.raises(EngineError, match="max_contexts is"):
            manifests.read(_write(tmp_path, {**data, "unet": {**data["unet"], "max_contexts": wrong}}))


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "..\\b", "C:/b", ""])
def test_paths_that_leave_the_directory_are_refused(data: dict[str, Any], path: str, tmp_path: Path) -> None:
    changed = copy.deepcopy(data)
    changed["files"][path] = {"size": 1, "sha256": "0"}
    with pytest.raises(EngineError, match="outside the engine directory"):
        manifests.read(_write(tmp_path, changed))


def test_steps_that_read_before_writing_are_refused(data: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.deepcopy(data)
    changed["unet"]["plan"].reverse()
    with pytest.raises(EngineError, match="before they are written"):
        manifests.read(_write(tmp_path, changed))


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [path] if path else []
    for key, value in items:
        found += _places(value, (*path, key))
    return found


_JUNK = st.sampled_from([None, True, -1, 1.5, "", "x", [], {}, [1], {"a": 1}, "../x", 10**30])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_any_change_is_valid_or_refused(data: dict[str, Any], choice: st.DataObject, tmp_path: Path) -> None:
    changed = copy.deepcopy(data)
    for _ in range(choice.draw(st.integers(1, 3))):
        place = choice.draw(st.sampled_from(_places(changed)))
        parent = changed
        for key in place[:-1]:
            parent = parent[key]
        if choice.draw(st.booleans()):
            del parent[place[-1]]
        else:
            # A copy: the same object put inside itself would have no end.
            parent[place[-1]] = copy.deepcopy(choice.draw(_JUNK))
        if not changed:
            break
    try:
        manifests.read(_write(tmp_path, changed))
    except EngineError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        shutil.rmtree(tmp_path / "x", ignore_errors=True)


def test_unknown_dtypes_are_refused(data: dict[str, Any], tmp_path: Path) -> None:
    for dtype, known in (("float16", True), ("float8", False)):
        changed = copy.deepcopy(data)
        name = changed["unet"]["plan"][0]["outputs"][0]
        changed["unet"]["tensors"][name]["dtype"] = dtype
        folder = _write(tmp_path, changed)
        if known:
            assert manifests.read(folder).unet.tensors[name].dtype == dtype
        else:
            with pytest.raises(EngineError, match=f"'{name}' of the UNet has dtype 'float8'"):
                manifests.read(folder)
