"""Parameter servers: hand-worked rounds, limits, where a ring becomes better, and BytePS's optimum."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.prediction import parameter_server
from leptonai.compute.prediction.collectives import ring_all_reduce

COUNTS = st.integers(1, 200)
RATES = st.floats(1e6, 1e12)


def test_rounds_by_hand() -> None:
    # 4 workers, 2 servers, 8 bytes. Own link 8/2 = 4 s; a server's 4*8/(2*1) = 16 s; applying 4*8/2*0.25 = 4 s.
    links = {"worker_bytes_per_second": 2.0, "server_bytes_per_second": 1.0, "latency_seconds": 1.0}
    assert float(parameter_server.push_seconds(4, 2, 8.0, **links)) == 17.0
    pipelined = parameter_server.round_seconds(4, 2, 8.0, **links, apply_seconds_per_byte=0.25)
    assert float(pipelined) == 2 * 1 + 16 + 4
    one_by_one = parameter_server.round_seconds(
        4, 2, 8.0, **links, apply_seconds_per_byte=0.25, pipelined=False
    )
    assert float(one_by_one) == 17 + 4 + 17


def test_updates_without_waiting_by_hand() -> None:
    # Alone: push max(8/8, 8/(1*4)) = 2 s, pull 2 s, compute 12 s: one update in 16 s; limit 4/(2*8) = 1/4 a second.
    common = {
        "compute_seconds": 12.0,
        "worker_bytes_per_second": 8.0,
        "server_bytes_per_second": 4.0,
    }
    rates = [
        float(parameter_server.asynchronous_updates_per_second(workers, 1, 8.0, **common))
        for workers in (1, 2, 4, 8)
    ]
    assert rates == [1 / 16, 2 / 16, 1 / 4, 1 / 4]
    both_ways = parameter_server.asynchronous_updates_per_second(8, 1, 8.0, **common, duplex=True)
    assert float(both_ways) == 1 / 2
    slow_server = parameter_server.asynchronous_updates_per_second(
        8, 1, 8.0, **common, apply_seconds_per_byte=1.0
    )
    assert float(slow_server) == 1 / 8


def test_infinitely_fast_links_leave_computation_and_latency() -> None:
    links = {"worker_bytes_per_second": math.inf, "server_bytes_per_second": math.inf}
    assert float(parameter_server.round_seconds(8, 1, 1e9, **links, latency_seconds=0.5)) == 1.0
    rate = parameter_server.asynchronous_updates_per_second(8, 1, 1e9, compute_seconds=2.0, **links)
    assert float(rate) == 4.0


@given(
    workers=COUNTS, servers=COUNTS, size=st.floats(1, 1e11), own=RATES, server=RATES, faster=st.floats(1, 50)
)
def test_monotony(workers: int, servers: int, size: float, own: float, server: float, faster: float) -> None:
    def seconds(count: int, num_bytes: float, worker_rate: float, server_rate: float) -> float:
        return float(
            parameter_server.round_seconds(
                workers, count, num_bytes, worker_bytes_per_second=worker_rate,
                server_bytes_per_second=server_rate, latency_seconds=1e-4, apply_seconds_per_byte=1e-10,
            )
        )  # fmt: skip

    base = seconds(servers, size, own, server)
    assert seconds(servers, size, own * faster, server * faster) <= base
    assert seconds(servers + 1, size, own, server) <= base
    assert seconds(servers, size * faster, own, server) >= base


@pytest.mark.parametrize("workers", [2, 4, 16, 100])
@pytest.mark.parametrize("servers", [1, 3])
def test_break_even_is_where_both_take_as_long(workers: int, servers: int) -> None:
    together = float(parameter_server.break_even_server_bytes_per_second(workers, 1e9))
    assert together == pytest.approx(workers**2 * 1e9 / (2 * (workers - 1)))
    around = parameter_server.round_seconds(
        workers, servers, 1e8, worker_bytes_per_second=1e9, server_bytes_per_second=together / servers
    )
    ring = ring_all_reduce(workers, 1e8).seconds(latency_seconds=0, bandwidth_bytes_per_second=1e9)
    assert float(around) == pytest.approx(float(ring))


def test_servers_never_help_one_worker_nor_rounds_in_turn() -> None:
    assert float(parameter_server.break_even_server_bytes_per_second(1, 1e9)) == math.inf
    # Push and pull of n each over the worker's own link already take longer than a ring's 2 (w-1)/w n.
    assert float(parameter_server.break_even_server_bytes_per_second(8, 1e9, pipelined=False)) == math.inf


def test_byteps_by_hand() -> None:
    # 4 machines with GPUs: ring 2*3/4; 2 spare: 24/(16+8-4); 4 spare: 1; more do not help.
    found = [float(parameter_server.byteps_seconds(10.0, 4, spare, bandwidth=10.0)) for spare in (0, 2, 4, 9)]
    assert found == [1.5, 1.2, 1.0, 1.0]
    assert float(parameter_server.byteps_seconds(10.0, 1, 3, bandwidth=10.0)) == 0
    gpu, cpu = parameter_server.byteps_shares(4, 2)
    assert (float(gpu), float(cpu)) == (2 / 20, 6 / 20)


@given(machines=COUNTS, spare=st.integers(0, 300))
def test_byteps_shares_are_the_whole_model(machines: int, spare: int) -> None:
    gpu, cpu = parameter_server.byteps_shares(machines, spare)
    assert machines * float(gpu) + spare * float(cpu) == pytest.approx(1.0)
    assert float(gpu) >= 0


def test_staleness() -> None:
    assert float(parameter_server.mean_staleness(8)) == 7
    assert float(parameter_server.mean_staleness(8, bound=0)) == 0
    assert float(parameter_server.mean_staleness(1)) == 0
