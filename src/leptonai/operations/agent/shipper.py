"""Sends what the spool holds to a collector, in order, and waits longer after each failure."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.errors import InputError
from leptonai.operations.agent.collector import TIMEOUT_SECONDS, Collector
from leptonai.operations.agent.own import Sent
from leptonai.operations.agent.spool import Parcel, Spool

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
"""A collector that was down an hour is found again within a minute."""
LONGEST_ASKED_SECONDS = 300.0
"""The most of what a collector asks for with Retry-After."""
FLUSH_SECONDS = 5.0
"""What is left is sent for so long at the end: less than the 10 s and more that init systems give before they kill."""
_ANSWER_BYTES = 2048
_TOO_MANY = 429
_WRITTEN_HEADER = "X-Prometheus-Remote-Write-Samples-Written"

Verdict = Literal["taken", "refused", "later"]


def verdict(status: int) -> Verdict:
    """What an answer means: 4xx would be refused again (but for "too many requests"), all else may pass.

    Source: prometheus.io/docs/specs/prw/remote_write_spec, "Retries & Backoff".

    >>> [verdict(status) for status in (204, 400, 429, 302, 503)]
    ['taken', 'refused', 'later', 'later', 'later']
    """
    if 200 <= status < 300:
        return "taken"
    return "refused" if 400 <= status < 500 and status != _TOO_MANY else "later"


def delay_seconds(num_failures: int, chance: float, *, asked: float | None = None) -> float:
    """How long to wait after failures in a row: twice as long each time, and spread, so that the agents of a thousand
    nodes do not come back in the same second.

    Args:
        num_failures: in a row, at least 1.
        chance: uniform in [0, 1).
        asked: what the collector asked for; it is never asked earlier.

    >>> delay_seconds(1, 0.0), delay_seconds(3, 0.5), delay_seconds(99, 1.0), delay_seconds(1, 0.0, asked=30.0)
    (0.5, 3.0, 60.0, 30.0)
    """
    longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(num_failures - 1, 16))
    delay = longest * (0.5 + chance / 2)
    return delay if asked is None else max(delay, min(asked, LONGEST_ASKED_SECONDS))


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    reason: str
    num_written: int | None
    asked_seconds: float | None


class Shipper:
    """Sends parcels. :meth:`ship` from one thread at a time.

    Args:
        spool: what is to be sent.
        collector: where to.
        sent: counts what became of it.
        on_trouble: told once in words, when sending first fails, and again after it has worked meanwhile.
        chance: uniform in [0, 1), for spreading delays.
    """

    def __init__(
        self,
        spool: Spool,
        collector: Collector,
        *,
        sent: Sent,
        on_trouble: Callable[[str], None] = lambda sentence: None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._spool, self._collector, self._sent = spool, collector, sent
        self._on_trouble, self._chance = on_trouble, chance
        self._clock = clock or SystemClock()
        self._connection: http.client.HTTPConnection | None = None
        self._num_failures = 0
        self._told = ""
        self._over_at_seconds = float("inf")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def ship(self) -> float | None:
        """Send all there is; None: all is sent, else the seconds to wait before the next attempt."""
        while not self._is_over() and (parcel := self._spool.first()) is not None:
            delay = self.send(parcel)
            if delay is not None:
                return delay
        return None

    def send(self, parcel: Parcel) -> float | None:
        """Send one parcel, the spool's first; None: it is done with, else the seconds to wait."""
        try:
            answer = self._post(parcel)
        except (OSError, http.client.HTTPException, InputError) as error:
            self._disconnect()
            return self._failed(why(error), None)
        what = verdict(answer.status)
        if what == "later":
            return self._failed(answer.reason, answer.asked_seconds)
        num_written = parcel.num_items if what == "taken" else min(answer.num_written or 0, parcel.num_items)
        self._sent.took(num_written)
        if num_written < parcel.num_items:
            self._sent.lost("refused", parcel.num_items - num_written)
            self._tell(f"the collector refused part of what it was sent: {answer.reason}")
        else:
            self._told = ""
        self._num_failures = 0
        self._spool.sent(parcel)
        return None

    def start(self) -> None:
        """Send in a thread, whenever :meth:`wake` says that there is something."""
        self._thread = threading.Thread(target=self._run, name="lepton-agent-send", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to send."""
        self._wake.set()

    def close(self, *, flush_seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left, for a bounded time, and end the thread; again is allowed."""
        self._over_at_seconds = self._clock.monotonic_seconds() + flush_seconds
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(flush_seconds + TIMEOUT_SECONDS)
            self._thread = None
        self._disconnect()

    def _run(self) -> None:
        while not self._stopping.is_set():
            delay = self.ship()
            if delay is None:
                self._wake.wait()
                self._wake.clear()
            else:
                self._stopping.wait(delay)
        self.ship()  # the last body, and once more what did not pass before

    def _post(self, parcel: Parcel) -> _Answer:
        connection = self._connection
        headers = self._collector.headers(parcel.kind)
        if connection is not None:
            try:
                return self._exchange(connection, parcel, headers)
            except (http.client.RemoteDisconnected, ConnectionError):
                # A kept connection that the other side closed meanwhile: no failure, and nothing was answered.
                self._disconnect()
        self._connection = connection = self._collector.connect()
        return self._exchange(connection, parcel, headers)

    def _exchange(
        self, connection: http.client.HTTPConnection, parcel: Parcel, headers: dict[str, str]
    ) -> _Answer:
        connection.request("POST", self._collector.path(parcel.kind), parcel.body, headers)
        answer = connection.getresponse()
        text = answer.read(_ANSWER_BYTES + 1)
        if len(text) > _ANSWER_BYTES or answer.will_close:
            self._disconnect()  # the rest of a long answer is not worth reading
        said = " ".join(text.decode("utf-8", "replace").split())[:200]
        return _Answer(
            answer.status,
            f"{answer.status} {said}".strip(),
            whole_number(answer.getheader(_WRITTEN_HEADER)),
            whole_number(answer.getheader("Retry-After")),
        )

    def _is_over(self) -> bool:
        return self._clock.monotonic_seconds() >= self._over_at_seconds

    def _failed(self, reason: str, asked_seconds: float | None) -> float:
        self._num_failures += 1
        self._sent.failed()
        self._tell(f"nothing reaches the collector at {self._collector}, what is taken waits: {reason}")
        return delay_seconds(self._num_failures, self._chance(), asked=asked_seconds)

    def _tell(self, sentence: str) -> None:
        if not self._told:
            self._told = sentence
            self._on_trouble(sentence)

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(OSError):
                connection.close()


def whole_number(text: str | None) -> int | None:
    """A number in a header; None: there is none that can be used.

    >>> whole_number("12"), whole_number("soon"), whole_number(None)
    (12, None, None)
    """
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def why(error: BaseException) -> str:
    """A failure in few words; never the request, which holds the token.

    >>> why(ConnectionRefusedError(111, "Connection refused")), why(InputError("t: holds no token"))
    ('Connection refused', 't: holds no token')
    """
    if isinstance(error, InputError):
        return error.message
    return str(getattr(error, "strerror", None) or type(error).__name__)
