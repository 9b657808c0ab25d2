"""What is no file, in the place of one."""

import os
import socket
from pathlib import Path

KINDS = ("pipe", "socket", "dangling link", "device", "folder")


def put(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        # The name of a socket is short.
        before = Path.cwd()
        os.chdir(path.parent)
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(path.name)
        finally:
            os.chdir(before)
    elif kind == "folder":
        path.mkdir()
        (path / "a file").write_text("")
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere/at/all")
