"""The same work for several files at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Made = TypeVar("Made")


def run_each(
    work: Callable[[str], Made], names: Iterable[str], at_once: int, on_done: Callable[[str, Made], None]
) -> None:
    """Call `work` for every name, in threads, and `on_done` with the name and the result of each, in this thread.

    The first error of either is raised; what has not begun by then does not begin, and what has begun is waited for.

    Args:
        work: called in the order of the names.
        names: all different.
        at_once: number of threads.
        on_done: called in the order in which work ends.
    """
    with ThreadPoolExecutor(at_once) as pool:
        pending = {pool.submit(work, name): name for name in names}
        try:
            for future in as_completed(pending):
                on_done(pending[future], future.result())
        except BaseException:
            for future in pending:
                future.cancel()
            raise
