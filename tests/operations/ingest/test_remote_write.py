"""Remote-write: what goes out comes in, to the bit; what is broken is refused with one sentence."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.compiled import load_compiled
from leptonai.core.errors import InputError
from leptonai.operations.ingest import remote_write, snappy
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.remote_write import MetricInfo, encode_write_request, header_problem, receive
from leptonai.operations.ingest.wire import bytes_field, double_field, number_field, text_field
from leptonai.operations.ingest.write_walk import SOURCE, _declare, walk, walk_in_python
from leptonai.operations.series import STALE_NAN, Series
from leptonai.operations.store import Matcher, MetricsStore

NOW_SECONDS = 1_700_000_000.0
NOW_MS = int(NOW_SECONDS * 1000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetricsStore]:
    with MetricsStore.open(tmp_path / "store", clock=FakeClock(start_seconds=NOW_SECONDS)) as opened:
        yield opened


def intake_of(store: MetricsStore, **limits: int) -> Intake:
    return Intake(store, limits=IngestLimits(**limits), clock=FakeClock(start_seconds=NOW_SECONDS))


def bits(values: np.ndarray | list[float]) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


def test_what_is_written_is_read_back_to_the_bit(store: MetricsStore) -> None:
    values = [1.0, float("nan"), STALE_NAN, float("inf"), -0.0, 5e-324]
    samples = [(NOW_MS - 10_000 + 1000 * at, value) for at, value in enumerate(values)]
    request = encode_write_request(
        [(Series.of("m_total", job="é"), samples), (Series.of("other"), [(NOW_MS, 2.0)])],
        [MetricInfo(name="m_total", kind="counter", unit="", help="Some\nhelp.")],
    )
    tally = receive(intake_of(store), "a", request)
    assert (tally.num_accepted, tally.num_refused) == (7, 0)
    (found,) = store.select([Matcher("job", "=", "é")], 0, NOW_MS)
    assert found.times_ms.tolist() == [time for time, _ in samples]
    assert bits(found.values) == bits(values)
    assert store.metadata()["m_total"].kind == "counter"
    again = receive(intake_of(store), "a", request)  # a sender that got no reply sends it again
    assert (again.num_accepted, again.num_refused) == (7, 0)


def test_bad_samples_are_counted_and_the_others_stored(store: MetricsStore) -> None:
    series = Series.of("m")
    intake = intake_of(store)
    receive(intake, "a", encode_write_request([(series, [(NOW_MS, 1.0)])]))
    tally = receive(
        intake, "a",
        encode_write_request(
            [(series, [(NOW_MS, 2.0), (NOW_MS + 10**8, 1.0), (NOW_MS - 10**6, 1.0), (NOW_MS + 1, 3.0)])]
        ),
    )  # fmt: skip
    assert tally.num_accepted == 1
    assert tally.refused == {"duplicate": 1, "too_far_in_future": 1, "out_of_order": 1}
    assert intake.totals["remote_write", "duplicate"] == 1
    assert "3 of 4 samples were refused" in tally.sentence()


def test_a_client_has_a_limit_of_series_and_others_are_not_affected(store: MetricsStore) -> None:
    intake = intake_of(store, series_per_client=1000)
    for first in range(0, 10_000, 2000):
        batch = [(Series.of("m", i=str(at)), [(NOW_MS, 1.0)]) for at in range(first, first + 2000)]
        tally = receive(intake, "greedy", encode_write_request(batch))
    assert tally.refused == {"over_the_series_limit": 2000}
    assert intake.totals["remote_write", "over_the_series_limit"] == 9000
    assert store.stats().num_series == 1000
    assert not receive(intake, "other", encode_write_request([(Series.of("n"), [(NOW_MS, 1.0)])])).num_refused
    assert not receive(
        intake, "greedy", encode_write_request([(Series.of("m", i="5"), [(NOW_MS + 1, 1.0)])])
    ).num_refused


def test_series_that_fell_silent_stop_counting(store: MetricsStore) -> None:
    clock = FakeClock(start_seconds=NOW_SECONDS)
    intake = Intake(store, limits=IngestLimits(series_per_client=2, active_seconds=60.0), clock=clock)
    for turn in range(6):
        request = encode_write_request([(Series.of("m", i=str(turn)), [(NOW_MS, 1.0)])])
        assert receive(intake, "a", request).num_refused == 0
        clock.advance(61.0)


@pytest.mark.parametrize(
    "labels",
    [[], [("__name__", "")], [("__name__", "a b")], [("__name__", "m"), ("0", "x")],
     [("__name__", "m"), ("a", "1"), ("a", "2")], [("__name__", "m"), *((f"l{n}", "x") for n in range(64))]],
)  # fmt: skip
def test_a_series_that_is_none_is_refused(store: MetricsStore, labels: list[tuple[str, str]]) -> None:
    body = b"".join(bytes_field(1, text_field(1, name) + text_field(2, value)) for name, value in labels)
    body += bytes_field(2, double_field(1, 1.0) + number_field(2, NOW_MS))
    with pytest.raises(InputError):
        receive(intake_of(store), "a", snappy.pack(bytes_field(1, body)))
    assert store.stats().num_series == 0


def test_labels_that_surround_the_samples_are_found(store: MetricsStore) -> None:
    body = bytes_field(1, text_field(1, "__name__") + text_field(2, "m"))
    body += bytes_field(2, double_field(1, 4.0) + number_field(2, NOW_MS))
    body += bytes_field(1, text_field(1, "z") + text_field(2, "1"))
    intake = intake_of(store)
    receive(intake, "a", snappy.pack(bytes_field(1, body)))
    receive(intake, "a", encode_write_request([(Series.of("m", z="1"), [(NOW_MS + 1, 5.0)])]))
    (found,) = store.select([Matcher("z", "=", "1")], 0, NOW_MS + 1)
    assert found.values.tolist() == [4.0, 5.0]


def test_a_bomb_is_refused_before_it_is_unpacked(store: MetricsStore) -> None:
    with pytest.raises(InputError, match="may have"):
        receive(intake_of(store, unpacked_bytes=1000), "a", snappy.pack(bytes(10_000_000)))


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 415), ({"content-type": "text/plain"}, 415),
     ({"content-type": "application/x-protobuf"}, 415),
     ({"content-type":
       "application/x-protobuf;proto=io.prometheus.write.v2.Request", "content-encoding": "snappy"}, 415),
     ({"content-type": "application/x-protobuf", "content-encoding": "snappy",
       "x-prometheus-remote-write-version": "2.0.0"}, 400)],
)  # fmt: skip
def test_wrong_headers_are_told(headers: dict[str, str], status: int) -> None:
    found = header_problem(headers)
    assert found is not None
    assert found[0] == status


def test_our_own_headers_are_right() -> None:
    assert header_problem({name.lower(): value for name, value in remote_write.HEADERS.items()}) is None


def _same_walk(data: bytes) -> None:
    results = []
    for way in (walk, walk_in_python):
        try:
            found = way(data)
            results.append(
                (found.series.tolist(), found.times_ms.tolist(), bits(found.values), found.metadata.tolist())
            )
        except InputError as error:
            results.append(error.message)
    assert results[0] == results[1]


@pytest.mark.skipif(load_compiled(SOURCE, _declare) is None, reason="no C compiler here: nothing to compare")
@given(data=st.binary(max_size=60), at=st.integers(0, 200), byte=st.integers(0, 255))
def test_the_compiled_walk_is_the_python_one(data: bytes, at: int, byte: int) -> None:
    series = [(Series.of("m", a="x" * n), [(NOW_MS + i, float(i)) for i in range(n)]) for n in range(4)]
    request = encode_write_request(series, [MetricInfo(name="m", kind="gauge")])
    whole = bytearray(snappy.unpack(request, limit_bytes=1 << 20))
    _same_walk(bytes(whole))
    whole[at % len(whole)] = byte
    _same_walk(bytes(whole))
    _same_walk(data)
    _same_walk(bytes_field(1, bytes_field(2, b"")) * 50 + bytes_field(1, data))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_stored_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    with MetricsStore.open(folder, clock=FakeClock(start_seconds=NOW_SECONDS)) as store:
        for body in (data, snappy.pack(data), snappy.pack(bytes_field(1, data))):
            with contextlib.suppress(InputError):
                receive(intake_of(store), "a", body)
