"""The query API's routes: parameters from the address or a form, answers and errors in Prometheus' envelope."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from leptonai.core.errors import Fault, InputError, LeptonError
from leptonai.operations.ingest.limits import QueryTooLarge, QueryTooSlow
from leptonai.operations.ingest.promql.syntax import Unsupported
from leptonai.operations.ingest.query_api import Parameters, QueryApi

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Handler = Callable[["Request"], Awaitable["Response"]]
ReadBody = Callable[["Request"], Awaitable[bytes]]
_MAX_PARAMETERS = 1000


def handlers(api: QueryApi, read_body: ReadBody) -> dict[str, Handler]:
    """Path to handler; each answers GET and POST."""
    return {
        "/api/v1/query": _answering(api.query, read_body),
        "/api/v1/query_range": _answering(api.query_range, read_body),
        "/api/v1/series": _answering(api.series, read_body),
        "/api/v1/labels": _answering(api.labels, read_body),
        "/api/v1/metadata": _answering(api.metadata, read_body),
        "/api/v1/status/buildinfo": _answering(lambda _: api.buildinfo(), read_body),
        "/api/v1/label/{name}/values": _answering_label(api, read_body),
    }


def _answering_label(api: QueryApi, read_body: ReadBody) -> Handler:
    async def handle(request: Request) -> Response:
        act = partial(api.label_values, str(request.path_params["name"]))
        return await _answering(act, read_body)(request)

    return handle


def _answering(act: Callable[[Parameters], Any], read_body: ReadBody) -> Handler:
    from starlette.responses import JSONResponse

    async def handle(request: Request) -> Response:
        try:
            given = await _parameters(request, read_body)
            data = await asyncio.to_thread(act, given)
        except QueryTooSlow as error:
            return JSONResponse(_error("timeout", error), status_code=503)
        except (Unsupported, QueryTooLarge) as error:
            return JSONResponse(_error("execution", error), status_code=422)
        except InputError as error:
            return JSONResponse(_error("bad_data", error), status_code=400)
        except Fault as error:
            return JSONResponse(_error("internal", error), status_code=503)
        return JSONResponse({"status": "success", "data": data})

    return handle


async def _parameters(request: Request, read_body: ReadBody) -> Parameters:
    text = request.url.query
    if request.method == "POST":
        try:
            body = (await read_body(request)).decode()
        except UnicodeDecodeError:
            raise InputError("the form is not UTF-8") from None
        text = f"{text}&{body}" if text else body
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise InputError(f"more than {_MAX_PARAMETERS} parameters") from None


def _error(kind: str, error: LeptonError) -> dict[str, str]:
    text = error.message if error.hint is None else f"{error.message} ({error.hint})"
    return {"status": "error", "errorType": kind, "error": text}
