"""Routes by which others push to us: OpenTelemetry's metrics, and lines of logs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from leptonai.core.errors import InputError
from leptonai.operations.ingest import logs, otlp
from leptonai.operations.ingest.intake import Intake

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Handler = Callable[["Request"], Awaitable["Response"]]
ReadBody = Callable[["Request"], Awaitable[bytes]]
ClientOf = Callable[["Request"], str]
LOGS_PATH = "/api/v1/logs"


def push_handlers(
    intake: Intake, read_body: ReadBody, client_of: ClientOf, take_logs: logs.TakeLogs | None
) -> dict[str, Handler]:
    """Path to handler; each answers POST and needs the right to write."""
    return {
        otlp.PATH: _otlp(intake, read_body, client_of),
        LOGS_PATH: _logs(intake, read_body, take_logs),
    }


def _otlp(intake: Intake, read_body: ReadBody, client_of: ClientOf) -> Handler:
    from starlette.responses import PlainTextResponse, Response

    async def handle(request: Request) -> Response:
        problem = otlp.header_problem(request.headers)
        if problem is not None:
            intake.count_failure("otlp", "wrong_headers")
            return PlainTextResponse(problem[1] + "\n", status_code=problem[0])
        try:
            body = await read_body(request)
            tally = await asyncio.to_thread(otlp.receive, intake, client_of(request), body, request.headers)
        except InputError:
            intake.count_failure("otlp", "broken_request")
            raise
        kind = otlp.content_type(request.headers)
        return Response(otlp.reply(tally, is_json=kind == otlp.JSON), headers={"Content-Type": kind})

    return handle


def _logs(intake: Intake, read_body: ReadBody, take_logs: logs.TakeLogs | None) -> Handler:
    from starlette.responses import PlainTextResponse, Response

    def receive(body: bytes) -> list[str]:
        lines, problems = logs.read_lines(body, max_lines=intake.limits.log_lines)
        if take_logs is None:
            intake.count_failure("logs", "nobody_takes_logs", len(lines))
        elif lines:
            take_logs(lines)
            intake.count_failure("logs", "accepted", len(lines))
        intake.count_failure("logs", "broken_line", len(problems))
        return problems

    async def handle(request: Request) -> Response:
        try:
            body = await read_body(request)
        except InputError:
            intake.count_failure("logs", "broken_request")
            raise
        problems = await asyncio.to_thread(receive, body)
        if not problems:
            return Response(status_code=204)
        words = f"{len(problems)} lines were refused; the first: {problems[0]}"
        return PlainTextResponse(words + "\n", status_code=400)

    return handle
