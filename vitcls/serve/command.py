"""`python -m vitcls serve`: an HTTP server that classifies images, and a page to try it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace

from vitcls.errors import UserError, check_range
from vitcls.manifest import is_exported
from vitcls.serve.engine import Engine
from vitcls.serve.limits import MOST_PIXELS, Limits
from vitcls.wording import PARSER_OPTIONS, parsed

TOKEN = "VITCLS_TOKEN"  # noqa: S105 - the variable's name
_EXTRA = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")  # what `vitcls[serve]` installs
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_parser() -> ArgumentParser:
    """The options of `serve`."""
    parser = ArgumentParser(
        prog="python -m vitcls serve",
        description="Classifies images that are sent to it: POST /predict, a page at /, a description at /docs.",
        **PARSER_OPTIONS,
    )
    parser.add_argument("model", type=str, help="run folder, .ckpt file, or folder of `export`.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; 0.0.0.0: all of them.")
    parser.add_argument("--port", type=int, default=8000, help="to listen on; 0: any that is free.")
    parser.add_argument(
        "--share_port", type=bool, default=False, help="let another server with this option answer on the port too."
    )
    parser.add_argument(
        "--token",
        type=str | None,
        default=None,
        help=f"that clients have to send. Better in the variable {TOKEN}: a list of processes shows all options.",
    )
    parser.add_argument(
        "--cors", type=list[str], default=[], help="origins whose pages may ask, such as [https://example.org]."
    )
    _add_limits(parser)
    _add_speed(parser)
    return parser


def _add_limits(parser: ArgumentParser) -> None:
    parser.add_argument("--max_bytes", type=int, default=20_000_000, help="of an image file.")
    parser.add_argument("--max_pixels", type=int, default=50_000_000, help="of an image, width times height.")
    parser.add_argument("--max_images", type=int, default=16, help="of a request.")
    parser.add_argument("--queue", type=int, default=64, help="images accepted and not yet answered; beyond it, 429.")
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds for a request to arrive, and again for its answer."
    )
    parser.add_argument(
        "--linger",
        type=float,
        default=0.0,
        help="seconds in which requests are still taken after SIGTERM, while /ready already says no.",
    )


def _add_speed(parser: ArgumentParser) -> None:
    parser.add_argument("--max_batch", type=int, default=16, help="images that the network takes at once.")
    parser.add_argument("--threads", type=int | None, default=None, help="of the network (default: all cores).")
    parser.add_argument(
        "--precision", type=str, default="float32", help="of the forward pass of a run: float32 or bfloat16."
    )


def run_serve(words: list[str]) -> int:
    """Serve until a signal.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status of --help, 0.

    Raises:
        UserError: a mistake in the words, or a model that cannot be had.
        KeyboardInterrupt: the signal that ended it.
    """
    parser = serve_parser()
    with suppress(SystemExit):  # how --help ends
        options = parsed(parser, words[1:], parser)
        _check(options)
        _serve(options)
    return 0


def _check(options: Namespace) -> None:
    for name in ("max_bytes", "max_images", "max_batch"):
        check_range(name, options[name], options[name] >= 1, "at least 1")
    check_range("max_pixels", options.max_pixels, 1 <= options.max_pixels <= MOST_PIXELS, f"in 1..{MOST_PIXELS}")
    enough = options.queue >= options.max_images
    check_range("queue", options.queue, enough, f"at least {options.max_images}, --max_images, or none would fit")
    check_range("timeout", options.timeout, 0 < options.timeout < 3600, "above 0 and below 3600")
    check_range("linger", options.linger, 0 <= options.linger < 3600, "in 0..3600")
    check_range("port", options.port, 0 <= options.port < 1 << 16, "in 0..65535")
    check_range("threads", options.threads, options.threads is None or options.threads >= 1, "at least 1")
    known = ("float32", "bfloat16")
    check_range("precision", repr(options.precision), options.precision in known, " or ".join(known))


def _serve(options: Namespace) -> NoReturn:
    try:
        from vitcls.serve.access import Access, check_access
        from vitcls.serve.app import make_app
        from vitcls.serve.logs import log_event
        from vitcls.serve.metrics import Figures
        from vitcls.serve.server import bound, listen, run
        from vitcls.serve.service import Service
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise UserError(f"serve needs {error.name}, which is not installed; pip install 'vitcls[serve]'.") from error
    token = os.environ.get(TOKEN) if options.token is None else options.token  # an empty one is refused, not overlooked
    access = Access(token, options.cors)
    check_access(access)
    limits = Limits(options.max_bytes, options.max_pixels, options.max_images, options.queue, options.timeout)
    with bound(options.host, options.port, options.share_port) as found:  # before the model takes its seconds
        engine, figures = _opened(options), Figures()
        service = Service(engine, limits, options.max_batch, _cores(), figures)
        app = make_app(service, limits, access, figures)
        address = listen(found)
        log_event(f"serving {engine.name} on {address}")
        if access.token is None and options.host not in _LOOPBACK:
            log_event(f"anyone who reaches {address} may ask; --token or {TOKEN} would ask them who they are")
        run(app, service, found, limits, options.linger)


def _opened(options: Namespace) -> Engine:
    folder = Path(options.model).expanduser()
    threads = options.threads or _cores()
    if is_exported(folder):
        from vitcls.serve.exported_engine import ExportedEngine

        check_range(
            "precision",
            repr(options.precision),
            options.precision == "float32",
            "left out with an exported folder, whose precision is settled",
        )
        return ExportedEngine(folder, threads)
    # Read when torch is loaded: threads of the network that wait by spinning keep the cores from those that decode, and
    # from whatever else runs. Two cores with a load of 4 answered 5 images a second with it, 20 without (DeiT-Tiny).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vitcls.serve.torch_engine import TorchEngine

    return TorchEngine(options.model, options.precision, threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
