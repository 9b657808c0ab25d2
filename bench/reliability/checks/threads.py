"""Threads that share an engine make the images that one thread makes."""

import threading
from typing import Any

import ebca
from ebca.bench.reliability.image import digest
from ebca.bench.reliability.table import Options

_THREADS = 8


def run(options: Options) -> dict[str, Any]:
    """count: images per thread."""
    failures: list[str] = []
    with ebca.load(options.engine, "cpu", options.backend, threads=1) as engine:
        with engine.session() as session:
            expected = [digest(session, options.seed + index) for index in range(options.count)]

        def work(thread: int) -> None:
            try:
                with engine.session() as session:
                    # Each begins elsewhere, so that different images are made at the same time.
                    for index in (*range(thread, options.count), *range(min(thread, options.count))):
                        if digest(session, options.seed + index) != expected[index]:
                            failures.append(f"thread {thread}: image {index} differs")
            except Exception as error:
                failures.append(f"thread {thread}: {type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"threads": _THREADS, "failures": failures}
