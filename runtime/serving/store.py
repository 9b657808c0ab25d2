"""Jobs on disk: one SQLite file in a folder that one process uses at a time."""

import fcntl
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ebca.errors import EbcaError, ParameterError
from ebca.runtime.serving.work import Made, Work

VERSION = 1
_FILE, _LOCK = "jobs.sqlite", "lock"

_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    deadline REAL NOT NULL,
    work TEXT NOT NULL,
    parameters TEXT NOT NULL,
    timings TEXT,
    energies TEXT,
    attention TEXT,
    problem TEXT,
    remedy TEXT
);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE images (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    token TEXT NOT NULL UNIQUE,
    png BLOB NOT NULL,
    PRIMARY KEY (job, position)
);
"""
_COLUMNS = "id, owner, state, created, started, finished, deadline, parameters, timings, problem, remedy"


class State(StrEnum):
    """Of a job. `INTERRUPTED` ones were running when their process ended, and can be run again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the job."""
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Job:
    """A job as it is stored.

    Attributes:
        id: 128 random bits in hexadecimal digits.
        owner: who may see it; "" if the service has no API keys.
        state: of the job.
        parameters: of its images.
        created, started, finished, deadline: seconds since 1970.
        timings: seconds per stage; None before it is done.
        error: if it failed, was cancelled, or ran out of time.
        tokens: one secret name per image, in order; none before it is done.
    """

    id: str
    owner: str
    state: State
    parameters: Mapping[str, Any]
    created: float
    deadline: float
    started: float | None = None
    finished: float | None = None
    timings: Mapping[str, Any] | None = None
    error: EbcaError | None = None
    tokens: tuple[str, ...] = field(default=())


class Store:
    """The jobs of one service. Thread-safe. A context manager is not needed: `close` frees the folder.

    Every change is one transaction, so a job that is done has all its images, whenever the process is killed.

    Args:
        folder: is created if it is missing.
        keep: finished jobs to keep.

    Raises:
        ParameterError: the folder cannot be used, another process uses it, or another version wrote it.
    """

    def __init__(self, folder: Path, keep: int = 1000) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Prompts and images are nobody else's business.
            self._held = (folder / _LOCK).open("a")
            _hold(self._held, folder)
            self._db = sqlite3.connect(folder / _FILE, check_same_thread=False, isolation_level=None)
            self._open(folder)
        except (OSError, sqlite3.Error) as error:
            problem = f"the data folder '{folder}' cannot be used: {error}"
            raise ParameterError(problem, "name a folder that can be written") from None

    def _open(self, folder: Path) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", "busy_timeout = 5000"):
            self._db.execute(f"PRAGMA {pragma}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            raise ParameterError(
                f"the data folder '{folder}' has version {version}, and this program reads {VERSION}",
                "name another folder",
            )
        (folder / _FILE).chmod(0o600)

    def add(self, work: Work, parameters: Mapping[str, Any], owner: str, seconds: float) -> Job:
        """Store a new job, which waits."""
        now = time.time()
        job = Job(secrets.token_hex(16), owner, State.QUEUED, parameters, now, now + seconds)
        with self._changing():
            self._db.execute(
                "INSERT INTO jobs (id, owner, state, created, deadline, work, parameters) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job.id, owner, job.state, now, job.deadline, json.dumps(vars(work)), json.dumps(dict(parameters))),
            )
        return job

    def recover(self) -> list[Job]:
        """To be called at the start: jobs that were running are marked as interrupted. Returns those that wait."""
        with self._changing():
            self._db.execute(
                "UPDATE jobs SET state = ?, finished = ?, problem = ?, remedy = ? WHERE state = ?",
                (
                    State.INTERRUPTED, time.time(),
                    "the service ended while the job was running", "run it again", State.RUNNING,
                ),
            )  # fmt: skip
        return self._jobs("WHERE state = ? ORDER BY number", (State.QUEUED,))

    def start(self, job: str) -> float:
        """A job that waits begins. Returns when that is, in seconds since 1970."""
        now = time.time()
        self._set(job, state=State.RUNNING, started=now)
        return now

    def queue_again(self, job: str, seconds: float) -> None:
        """A job waits once more."""
        empty = dict.fromkeys(("started", "finished", "problem", "remedy"))
        self._set(job, state=State.QUEUED, deadline=time.time() + seconds, **empty)

    def fail(self, job: str, state: State, error: EbcaError) -> None:
        """A job ends without images."""
        self._set(job, state=state, finished=time.time(), problem=error.problem, remedy=error.remedy)

    def finish(self, job: str, made: Made) -> None:
        """A job is done: all its images appear with it. The oldest jobs beyond `keep` are removed."""
        values = [
            None if value is None else json.dumps(value)
            for value in (dict(made.parameters), dict(made.timings), made.energies, made.attention)
        ]
        with self._changing():
            (number,) = self._db.execute("SELECT number FROM jobs WHERE id = ?", (job,)).fetchone()
            self._db.executemany(
                "INSERT INTO images (job, position, token, png) VALUES (?, ?, ?, ?)",
                [(number, index, secrets.token_urlsafe(24), png) for index, png in enumerate(made.images)],
            )
            self._db.execute(
                # Nobody needs the images that it started from any more.
                "UPDATE jobs SET state = ?, finished = ?, parameters = ?, timings = ?, energies = ?, attention = ?, "
                "work = '{}' WHERE number = ?",
                (State.DONE, time.time(), *values, number),
            )
            self._db.execute(
                "DELETE FROM jobs WHERE state NOT IN (?, ?) AND number <= (SELECT number FROM jobs "
                "WHERE state NOT IN (?, ?) ORDER BY number DESC LIMIT 1 OFFSET ?)",
                (State.QUEUED, State.RUNNING, State.QUEUED, State.RUNNING, self._keep),
            )

    def remove(self, job: str) -> None:
        """Remove a job with its images."""
        with self._changing():
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def job(self, job: str) -> Job | None:
        """A job; None if there is none of this name."""
        found = self._jobs("WHERE id = ?", (job,))
        return found[0] if found else None

    def jobs(self, owner: str, limit: int) -> list[Job]:
        """The newest jobs of an owner, the newest first."""
        return self._jobs("WHERE owner = ? ORDER BY number DESC LIMIT ?", (owner, limit))

    def work(self, job: str) -> Work:
        """What a job asks for that is not done."""
        (text,) = self._one("SELECT work FROM jobs WHERE id = ?", (job,)) or ("{}",)
        return Work(**json.loads(text))

    def image(self, job: str, position: int) -> bytes | None:
        """The PNG file of an image of a job."""
        found = self._one(
            "SELECT png FROM images JOIN jobs ON images.job = jobs.number WHERE jobs.id = ? AND position = ?",
            (job, position),
        )
        return None if found is None else bytes(found[0])

    def image_named(self, token: str) -> bytes | None:
        """The PNG file with this secret name."""
        found = self._one("SELECT png FROM images WHERE token = ?", (token,))
        return None if found is None else bytes(found[0])

    def telemetry(self, job: str, kind: str) -> Mapping[str, Any] | None:
        """The energies or the attention maps ("energies", "attention") of a job; None if they were not recorded."""
        assert kind in ("energies", "attention")
        found = self._one(f"SELECT {kind} FROM jobs WHERE id = ?", (job,))
        return None if found is None or found[0] is None else dict(json.loads(found[0]))

    def close(self) -> None:
        """Free the folder. Closing twice is fine."""
        with self._lock:
            self._db.close()
            self._held.close()

    def _jobs(self, where: str, values: tuple[Any, ...]) -> list[Job]:
        tokens = "SELECT group_concat(token, ' ') FROM (SELECT token FROM images WHERE job = number ORDER BY position)"
        with self._lock:
            rows = self._db.execute(f"SELECT {_COLUMNS}, ({tokens}) FROM jobs {where}", values).fetchall()
        return [_job(row) for row in rows]

    def _one(self, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        return row

    def _set(self, job: str, **values: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        with self._changing():
            self._db.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*values.values(), job))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One transaction."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def _hold(file: Any, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = f"the data folder '{folder}' is used by another process"
        raise ParameterError(problem, "end it, or name another folder") from None


def _job(row: tuple[Any, ...]) -> Job:
    name, owner, state, created, started, finished, deadline, parameters, timings, problem, remedy, tokens = row
    return Job(
        name,
        owner,
        State(state),
        json.loads(parameters),
        created,
        deadline,
        started,
        finished,
        None if timings is None else json.loads(timings),
        None if problem is None else EbcaError(problem, remedy or ""),
        tuple(tokens.split()) if tokens else (),
    )
