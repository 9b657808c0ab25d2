"""ebca-serve: a service of one engine behind HTTP."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ebca import console
from ebca.errors import ParameterError
from ebca.runtime.cli import options
from ebca.runtime.engine import Engine
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.runner import EngineRunner
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import Store

if TYPE_CHECKING:
    from ebca.runtime.serving.http.context import Settings

PROGRAM = "ebca-serve"

_LOCAL = ("127.0.0.1", "localhost", "::1")
_EXAMPLES = """examples:
  ebca-serve --engine shapes                     then open http://127.0.0.1:8017
  ebca-serve --engine engine-sd15 --host 0.0.0.0 --api-key-file keys.txt --data-dir /var/lib/ebca
"""
_HELP = {
    "pixels": "of all images of one request together",
    "images": "of one request",
    "steps": "of the scheduler",
    "upload_bytes": "of a request's body",
    "upload_pixels": "of each image or mask in it",
    "text": "characters of all prompts of one request together",
    "seconds": "from a request to its images",
    "queue": "requests that wait; more are refused",
    "keep": "finished jobs in the store; the oldest are removed",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = console.Parser(
        PROGRAM,
        usage="%(prog)s --engine DIR [options]",
        description="Serve an engine over HTTP: a web page, a native API, OpenAI's images API, and a part of the API "
        "of Stable Diffusion's web UI.\nSee docs/serving.md.\n\n" + _EXAMPLES,
        allow_abbrev=False,
    )
    options.add_engine(p)
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    p.add_argument("--port", type=int, default=8017, help="0: any free one (default: %(default)s)")
    p.add_argument(
        "--data-dir", type=console.path, default=Path("ebca-data"), metavar="DIR",
        help="folder of jobs and images; one process uses it at a time (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--workers", type=int, default=1, metavar="N", help="jobs at the same time (default: %(default)s)")
    p.add_argument(
        "--max-batch", type=int, default=1, metavar="N",
        help="run up to N waiting requests of one image as one batch if they differ in prompt and seed alone: the same "
        "images, more of them per second where they are small, and each a little later (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--grace", type=float, default=60.0, metavar="S",
        help="seconds that running jobs get to finish after SIGTERM or Ctrl-C (default: %(default)g)",
    )  # fmt: skip
    access = p.add_argument_group("access")
    access.add_argument(
        "--api-key-file", type=console.path, metavar="FILE",
        help='file with one "NAME KEY" per line, readable by its owner only; every call then needs a key, and jobs '
        "belong to its name",
    )  # fmt: skip
    access.add_argument(
        "--allowed-host", action=options.Repeated, metavar="NAME",
        help="a host name by which the service may be called; can be repeated (default: names of this machine if "
        "--host is one, else any)",
    )  # fmt: skip
    access.add_argument(
        "--cors-origin", action=options.Repeated, metavar="ORIGIN",
        help="an origin whose pages may call, such as https://example.org; can be repeated (default: none)",
    )  # fmt: skip
    limits = p.add_argument_group("limits")
    for one in fields(Limits):
        kind = float if one.name == "seconds" else int
        limits.add_argument(
            f"--limit-{one.name.replace('_', '-')}", type=kind, default=one.default, metavar="N",
            help=f"{_HELP[one.name]} (default: %(default)s)",
        )  # fmt: skip
    options.add_adapters(p)
    options.add_machine(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return console.run(PROGRAM, lambda: _serve(parser().parse_args(argv)))


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the options say. Raises ParameterError for one that is not positive."""
    given = {one.name: getattr(args, f"limit_{one.name}") for one in fields(Limits)}
    for name, value in given.items():
        if not value > 0:
            raise ParameterError(f"--limit-{name.replace('_', '-')} is {value}", "give a number above 0")
    return Limits(**given)


def hosts_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The names by which the service may be called; empty: any."""
    if args.allowed_host:
        return tuple(args.allowed_host)
    return _LOCAL if args.host in _LOCAL else ()


def _serve(args: argparse.Namespace) -> int:
    try:
        from ebca.runtime.serving.http import server
    except ImportError as error:
        problem = f"{PROGRAM} needs packages that are not installed: {error.name}"
        raise ParameterError(problem, "run `pip install 'ebca[serve]'`") from None
    if args.print_engine_directory:
        print(options.engine_directory(args))
        return 0
    if args.workers < 1:
        raise ParameterError(f"--workers is {args.workers}", "give 1 or more")
    if args.max_batch < 1:
        raise ParameterError(f"--max-batch is {args.max_batch}", "give 1 or more")
    limits = limits_of(args)
    settings = server.settings_of(args.api_key_file, hosts_of(args), args.cors_origin or ())
    with console.PrepareProgress() as prepare:
        engine = options.open_engine(args, prepare)
    with engine:
        return _run(args, engine, limits, settings)


def _run(args: argparse.Namespace, engine: Engine, limits: Limits, settings: "Settings") -> int:
    from ebca.runtime.serving.http import server

    store = Store(args.data_dir, limits.keep)
    metrics = server.Metrics()
    runners = [EngineRunner(engine, limits, args.max_batch) for _ in range(args.workers)]
    service = Service(runners, store, limits, metrics.job, args.max_batch)
    try:
        service.start()
        server.run(server.Context(service, settings, metrics), args.host, args.port, args.grace)
    finally:
        service.shutdown(args.grace)
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
