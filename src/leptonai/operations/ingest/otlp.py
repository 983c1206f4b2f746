"""OpenTelemetry's OTLP/HTTP for metrics: requests in protobuf or JSON, perhaps gzip, to samples in the store.

Source: opentelemetry.io/docs/specs/otlp, "OTLP/HTTP". The library opentelemetry-proto is loaded with the first request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leptonai.core.errors import InputError
from leptonai.operations.ingest.gunzip import gunzip
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import Tally
from leptonai.operations.ingest.otlp_samples import convert

PROTOBUF, JSON = "application/x-protobuf", "application/json"
PATH = "/v1/metrics"


def header_problem(headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Why a request's headers (names in lower case) rule it out, with the HTTP status; None: they do not.

    >>> header_problem({"content-type": "text/plain"})[0], header_problem({"content-type": "application/json"})
    (415, None)
    """
    kind = content_type(headers)
    if kind not in (PROTOBUF, JSON):
        return 415, f"expected Content-Type {PROTOBUF} or {JSON}, found {kind[:80]!r}"
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", ""):
        return 415, f"expected Content-Encoding gzip or none, found {coding[:80]!r}"
    return None


def content_type(headers: Mapping[str, str]) -> str:
    """Without its parameters."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


def receive(intake: Intake, client: str, body: bytes, headers: Mapping[str, str]) -> Tally:
    """Store what a request holds.

    Args:
        intake: the way into the store.
        client: whose limit of series counts.
        body: as sent.
        headers: names in lower case, for which :func:`header_problem` finds nothing.

    Raises:
        InputError: it is broken; nothing of it is stored.
        Fault: the store cannot write; sending it again may help.
    """
    limits = intake.limits
    if headers.get("content-encoding", "").strip().lower() == "gzip":
        # not unpacked_bytes: each byte of such a message can take a hundred in memory
        body = gunzip(body, limit_bytes=limits.body_bytes)
    request = read_request(body, is_json=content_type(headers) == JSON)
    found = convert(request, max_samples=limits.request_samples, max_labels=limits.labels)
    tally = intake.put_samples("otlp", client, found.samples)
    for reason, count in found.refused.items():
        intake.count_failure("otlp", reason, count)
    tally.refused.update(found.refused)
    intake.describe("otlp", found.infos.values())
    return tally


def read_request(body: bytes, *, is_json: bool) -> Any:
    """An ExportMetricsServiceRequest.

    Raises:
        InputError: it is none, or the library is not installed.
    """
    messages, protobuf_message, json_format = _library()
    request = messages.ExportMetricsServiceRequest()
    try:
        if is_json:
            if not body.lstrip().startswith(b"{"):
                raise ValueError  # the library takes an empty list for an empty message
            json_format.Parse(body, request, ignore_unknown_fields=True)
        else:
            request.ParseFromString(body)
    except (protobuf_message.DecodeError, json_format.ParseError, ValueError, RecursionError, TypeError):
        kind = "JSON" if is_json else "protobuf"
        raise InputError(f"the body is not an ExportMetricsServiceRequest in {kind}") from None
    return request


def reply(tally: Tally, *, is_json: bool) -> bytes:
    """The body of a reply of 200: empty, or how many points were refused and why."""
    messages, _, json_format = _library()
    answer = messages.ExportMetricsServiceResponse()
    if tally.num_refused:
        answer.partial_success.rejected_data_points = tally.num_refused
        answer.partial_success.error_message = tally.sentence()
    if is_json:
        return str(json_format.MessageToJson(answer, indent=None)).encode()
    return bytes(answer.SerializeToString())


def _library() -> tuple[Any, Any, Any]:
    try:
        from google.protobuf import json_format, message
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
    except ModuleNotFoundError as error:
        raise InputError(
            "opentelemetry-proto is not installed", hint="pip install 'openlepton[operations]'"
        ) from error
    return metrics_service_pb2, message, json_format
