"""A lock on a folder that ends with its process, however that ends."""

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

FILE_NAME = "export.pid"

# File systems without locks, as some network ones are.
_UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class FolderLock:
    """The lock of the process that writes in a folder. `acquire` makes one; `release` removes its file.

    Attributes:
        folder: is renamed at the end of an export, and the lock goes with it.
    """

    def __init__(self, folder: Path, stream: TextIO) -> None:
        self.folder = folder
        self._stream = stream

    @classmethod
    def acquire(cls, folder: Path) -> "FolderLock | int":
        """Lock a folder, which is made if it does not exist.

        Returns:
            The lock, or the id of the process that holds it: 0 if the holder is about to say it.

        Raises:
            OSError: the folder cannot be written.
        """
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stream = (folder / FILE_NAME).open("a+", encoding="utf-8")
            except FileNotFoundError:
                continue  # the holder has just finished, and renamed the folder
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with stream:
                    stream.seek(0)
                    text = stream.read().strip()
                return int(text) if text.isdigit() else 0
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    stream.close()
                    raise
            if _is_at(stream, folder / FILE_NAME):
                stream.truncate(0)
                stream.write(str(os.getpid()))
                stream.flush()
                return cls(folder, stream)
            stream.close()  # the holder has finished in between, and this file is gone

    def release(self) -> None:
        """Remove the file and let go. Releasing twice is fine."""
        if not self._stream.closed:
            (self.folder / FILE_NAME).unlink(missing_ok=True)
            self._stream.close()


def _is_at(stream: TextIO, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    own = os.fstat(stream.fileno())
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)
