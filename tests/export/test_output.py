"""Where an engine can be written, and that two exports never write in one place."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ebca.engines.contract import manifest as manifests
from ebca.errors import ExportError
from ebca.export.lock import FILE_NAME, FolderLock
from ebca.export.output import PROGRESS, check_output, check_room, output_path, partial_folder


def refuse(output: Path, message: str, *, overwrite: bool = False) -> None:
    before = sorted(output.absolute().parent.rglob("*"))
    with pytest.raises(ExportError, match=message) as caught:
        check_output(output, overwrite=overwrite)
    assert caught.value.remedy and "\n" not in str(caught.value)
    assert sorted(output.absolute().parent.rglob("*")) == before


def test_a_quoted_home_folder_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert output_path("~/engine") == Path("/home/me/engine")
    assert output_path("engine") == Path("engine")
    with pytest.raises(ExportError, match="output folder '~nobody-of-this-name/x' cannot be found"):
        output_path("~nobody-of-this-name/x")


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    refuse(tmp_path / "link", "is a link to 'nowhere', which does not exist; name a folder")
    refuse(tmp_path / "loop", "is a link to 'loop', which does not exist")
    refuse(tmp_path / "link" / "engine", "is not writable")


def test_a_link_to_a_folder_stands_for_the_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "engine").mkdir()
    (tmp_path / "link").symlink_to("disk/engine")
    check_output(tmp_path / "link", overwrite=False)
    assert partial_folder(tmp_path / "link") == tmp_path / "disk" / "engine.partial"


@pytest.mark.parametrize("name", ["", ".", "..", "/", "below/.."])
def test_a_folder_without_a_name_of_its_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=r"has no name of its own; name a new folder"):
        check_output(Path(name), overwrite=True)


@pytest.mark.parametrize("name", ["o" * 300, "o" * 252, "a\0b"])
def test_names_that_no_file_system_takes(name: str, tmp_path: Path) -> None:
    refuse(tmp_path / name, "cannot be used: .*; name another folder")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "engine").mkdir()
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(ExportError, match="cannot be used: Permission denied; name another folder"):
        check_output(tmp_path / "engine", overwrite=False)


def test_a_folder_beside_it_that_no_export_made_is_not_deleted(tmp_path: Path) -> None:
    """Work under another key is deleted, so what lies there must be of an export."""
    partial = tmp_path / "engine.partial"
    partial.mkdir()
    check_output(tmp_path / "engine", overwrite=False)
    (partial / "thesis.tex").write_text("mine")
    refuse(tmp_path / "engine", r"engine\.partial' is where .* no export made it; move it away", overwrite=True)
    (partial / PROGRESS).write_text("{}")
    check_output(tmp_path / "engine", overwrite=False)
    shutil.rmtree(partial)
    partial.write_text("mine")
    refuse(tmp_path / "engine", "no export made it")


def test_what_an_interrupted_export_has_written_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ExportError, match="no room"):
        check_room(tmp_path / "engine", 3000)
    (tmp_path / "engine.partial" / "unet").mkdir(parents=True)
    (tmp_path / "engine.partial" / "unet" / "weights").write_bytes(bytes(2000))
    check_room(tmp_path / "engine", 3000)


def test_a_lock_is_held_by_one_and_ends_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "engine.partial"
    script = (
        "import sys, time; from pathlib import Path; from ebca.export.lock import FolderLock; "
        f"held = FolderLock.acquire(Path({str(folder)!r})); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            assert FolderLock.acquire(folder) == process.pid
        finally:
            process.kill()
    # Its file is still there, and names a process that may be another one by now.
    assert (folder / FILE_NAME).read_text() == str(process.pid)
    held = FolderLock.acquire(folder)
    assert isinstance(held, FolderLock)
    assert (folder / FILE_NAME).read_text() == str(os.getpid()) == str(FolderLock.acquire(folder))
    held.release()
    assert not (folder / FILE_NAME).exists()


def test_a_lock_on_a_folder_that_was_renamed_meanwhile(tmp_path: Path) -> None:
    """The export that held it has finished: the folder is the engine now, and a new one is made."""
    held = FolderLock.acquire(tmp_path / "engine.partial")
    assert isinstance(held, FolderLock)
    (tmp_path / "engine.partial").rename(tmp_path / "engine")
    other = FolderLock.acquire(tmp_path / "engine.partial")
    assert isinstance(other, FolderLock)
    held.folder = tmp_path / "engine"
    held.release()
    assert (tmp_path / "engine.partial" / FILE_NAME).is_file() and not list((tmp_path / "engine").iterdir())
    other.release()


def test_nothing_is_replaced_that_was_put_there_during_the_export(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    check_output(tmp_path / "engine", overwrite=True)
    (tmp_path / "engine" / "thesis.tex").write_text("mine")
    refuse(tmp_path / "engine", r"holds other files \(thesis\.tex", overwrite=True)
    (tmp_path / "engine" / manifests.FILE_NAME).write_text("{}")
    refuse(tmp_path / "engine", "holds an engine already; pass --overwrite")
