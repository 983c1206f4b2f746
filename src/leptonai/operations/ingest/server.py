"""The HTTP server in front of the store: guarded routes, bounded bodies, a graceful end.

Blocking work (the disk, queries) runs in threads, so that one slow query does not hold up others.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from leptonai.core.errors import Fault, InputError, LeptonError
from leptonai.operations.ingest import remote_read, remote_write
from leptonai.operations.ingest.access import Access, Right
from leptonai.operations.ingest.exposition import (
    OPENMETRICS_TYPE,
    TEXT_TYPE,
    Family,
    write_openmetrics,
    write_text,
)
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import Deadline, QueryTooLarge, QueryTooSlow, Tally
from leptonai.operations.ingest.logs import TakeLogs
from leptonai.operations.ingest.own_metrics import own_metrics
from leptonai.operations.ingest.push_routes import push_handlers
from leptonai.operations.ingest.query_api import QueryApi
from leptonai.operations.ingest.query_routes import handlers

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAINTAIN_SECONDS = 60.0
"""Between two calls of the store's ``maintain``; its tiers count minutes."""
FORM_BYTES = 1 << 20
"""Of a query's form: a query has 8 KiB at most, and a few matchers may come along."""
START_SECONDS = 10.0
STOP_SECONDS = 5.0
"""How long requests under way may take to finish when the server stops."""

MoreMetrics = Callable[[], Sequence[Family]]
Handler = Callable[["Request"], Awaitable["Response"]]


class TooLarge(InputError):
    """A body is over its limit; HTTP 413."""


def make_app(
    intake: Intake,
    *,
    access: Access,
    more_metrics: MoreMetrics = tuple,
    take_logs: TakeLogs | None = None,
) -> Starlette:
    """The application; run it with :class:`IngestServer` or any ASGI server.

    Args:
        intake: the way into the store.
        access: who may do what.
        more_metrics: further families for ``/metrics``.
        take_logs: takes lines of logs that are pushed, from several threads; None: they are counted and dropped.

    Raises:
        InputError: the web libraries are not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise InputError("starlette is not installed", hint="pip install 'openlepton[operations]'") from error

    routes = [
        Route("/healthz", _healthz, methods=["GET"]),
        Route("/metrics", _guard(access, "read", _metrics(intake, more_metrics)), methods=["GET"]),
        Route("/api/v1/write", _guard(access, "write", _remote_write(intake)), methods=["POST"]),
        Route("/api/v1/read", _guard(access, "read", _remote_read(intake)), methods=["POST"]),
    ]

    read_push = partial(read_body, limit_bytes=intake.limits.body_bytes)
    routes += [
        Route(path, _guard(access, "write", handler), methods=["POST"])
        for path, handler in push_handlers(intake, read_push, client_of, take_logs).items()
    ]
    api = QueryApi(intake.store, limits=intake.limits, clock=intake.clock)
    read_form = partial(read_body, limit_bytes=FORM_BYTES)
    routes += [
        Route(path, _guard(access, "read", handler), methods=["GET", "POST"])
        for path, handler in handlers(api, read_form).items()
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        upkeep = asyncio.create_task(_maintain(intake))
        try:
            yield
        finally:
            upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await upkeep

    return Starlette(routes=routes, lifespan=lifespan)


async def _maintain(intake: Intake) -> None:
    while True:
        await asyncio.sleep(MAINTAIN_SECONDS)
        try:
            await asyncio.to_thread(intake.store.maintain, intake.clock.now_seconds())
        except Fault:
            intake.count_failure("store", "maintain_failed")


def _guard(access: Access, right: Right, inner: Handler) -> Handler:
    """Check the right first, and turn our errors into replies: 4xx is not to be sent again, 5xx may be."""
    from starlette.responses import PlainTextResponse

    async def handle(request: Request) -> Response:
        headers = request.headers
        host, given = headers.get("host", ""), headers.get("authorization", "")
        if not access.allows(right, authorization=given, host=host):
            return PlainTextResponse(
                f"a {right} token is needed\n", status_code=401, headers={"WWW-Authenticate": "Bearer"}
            )
        try:
            return await inner(request)
        except TooLarge as error:
            return PlainTextResponse(f"{error.message}\n", status_code=413)
        except QueryTooLarge as error:
            return PlainTextResponse(f"{error.message}\n", status_code=422)
        except (Fault, QueryTooSlow) as error:
            return PlainTextResponse(f"{error.message}\n", status_code=503)
        except LeptonError as error:
            return PlainTextResponse(f"{error.message}\n", status_code=400)

    return handle


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it is over the limit; no more than the limit was read.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit_bytes:
            raise TooLarge(f"the body is larger than {limit_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


async def _healthz(_: Request) -> Response:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse("ok\n")


def _metrics(intake: Intake, more_metrics: MoreMetrics) -> Handler:
    from starlette.responses import Response

    async def handle(request: Request) -> Response:
        families = [*await asyncio.to_thread(own_metrics, intake), *more_metrics()]
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            return Response(write_openmetrics(families), headers={"Content-Type": OPENMETRICS_TYPE})
        return Response(write_text(families), headers={"Content-Type": TEXT_TYPE})

    return handle


def _remote_write(intake: Intake) -> Handler:
    from starlette.responses import PlainTextResponse

    async def handle(request: Request) -> Response:
        problem = remote_write.header_problem(request.headers)
        if problem is not None:
            intake.count_failure("remote_write", "wrong_headers")
            return PlainTextResponse(problem[1] + "\n", status_code=problem[0])
        try:
            body = await read_body(request, limit_bytes=intake.limits.body_bytes)
            tally = await asyncio.to_thread(remote_write.receive, intake, client_of(request), body)
        except InputError:
            intake.count_failure("remote_write", "broken_request")
            raise
        return tally_response(tally)

    return handle


def client_of(request: Request) -> str:
    """Whose limit of series counts: the address that a request comes from."""
    return request.client.host if request.client is not None else "local"


def tally_response(tally: Tally) -> Response:
    """204 where all samples were stored, else 400 with what was refused and why."""
    from starlette.responses import PlainTextResponse, Response

    headers = {"X-Prometheus-Remote-Write-Samples-Written": str(tally.num_accepted)}
    if not tally.num_refused:
        return Response(status_code=204, headers=headers)
    return PlainTextResponse(tally.sentence() + "\n", status_code=400, headers=headers)


def _remote_read(intake: Intake) -> Handler:
    from starlette.responses import Response

    async def handle(request: Request) -> Response:
        body = await read_body(request, limit_bytes=intake.limits.body_bytes)
        deadline = Deadline(intake.clock, intake.limits.query_seconds)
        found = await asyncio.to_thread(
            remote_read.answer, intake.store, body, limits=intake.limits, deadline=deadline
        )
        return Response(found, headers=remote_read.HEADERS)

    return handle


class IngestServer:
    """An application served in a thread of this process, from ``with`` to its end.

    Args:
        app: from :func:`make_app`.
        access: checked against ``host``.
        host: to listen on.
        port: 0: any free one; see :attr:`port`.

    Raises:
        InputError: listening there needs tokens, or the address cannot be had.
    """

    def __init__(self, app: Starlette, *, access: Access, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            import uvicorn
        except ModuleNotFoundError as error:
            raise InputError(
                "uvicorn is not installed", hint="pip install 'openlepton[operations]'"
            ) from error
        access.check_listener(host)
        try:
            kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.socket(kind, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError as error:
            raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        self.host, self.port = host, int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="on", server_header=False,
            timeout_graceful_shutdown=int(STOP_SECONDS),
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="lepton-ingest", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Begin to answer; returns once it does.

        Raises:
            Fault: it did not start in time.
        """
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(START_SECONDS / 0.01)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            waited.wait(0.01)
        raise Fault("the ingest server did not start")

    def stop(self) -> None:
        """Finish the requests under way, then stop listening."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS * 2)
        self._socket.close()

    def wait(self) -> None:
        """Until it stops."""
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
