"""Mutual TLS with throw-away certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.frames import FRAME_BYTES
from leptonai.training.parameter_server.link import Offer
from leptonai.training.parameter_server.memory import ShardShape
from leptonai.training.parameter_server.tcp_link import TcpLink
from leptonai.training.parameter_server.tcp_server import TcpService
from leptonai.training.parameter_server.tls import mutual_tls
from tests.training.parameter_server.tcp_stand_in import (
    JOB,
    TOKEN,
    StandIn,
    make_certificates,
    numbers,
    stand_in,
)

SHAPE = ShardShape(num_elements=2 * (FRAME_BYTES // 4) + 4096, num_states=0, num_slots=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def served(files: dict[str, Path]) -> Iterator[tuple[StandIn, TcpService]]:
    context = mutual_tls(
        "server", certificate=files["server"], key=files["server_key"], authority=files["authority"]
    )
    with stand_in(SHAPE) as server:
        found = TcpService(
            server.memory, job=JOB, token=TOKEN, tls=context, server_bell=server.server_bell,
            worker_bells=server.worker_bells, stall_seconds=2.0,
        )  # fmt: skip
        yield server, found
        found.close()


def worker_context(files: dict[str, Path], name: str, authority: str = "authority") -> ssl.SSLContext:
    return mutual_tls("worker", certificate=files[name], key=files[f"{name}_key"], authority=files[authority])


def connect(found: TcpService, tls: ssl.SSLContext | None, **options: float) -> TcpLink:
    return TcpLink(
        [found.address], job=JOB, token=TOKEN, slot=0, num_elements=SHAPE.num_elements, tls=tls, **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("num_streams", [1, 2])
def test_pushes_and_pulls_survive_cuts_under_tls(
    served: tuple[StandIn, TcpService], files: dict[str, Path], num_streams: int
) -> None:
    server, found = served
    link = connect(found, worker_context(files, "worker"), num_streams=num_streams)
    expected = np.zeros(SHAPE.num_elements, np.float32)
    for sequence in range(1, 7):
        link.gradients[:] = numbers(sequence, SHAPE.num_elements)
        expected -= np.float32(0.5) * link.gradients
        link.offer(Offer(sequence=sequence, start=0, stop=SHAPE.num_elements, lr=0.5))
        if sequence % 2:
            for stream in link._session.streams:
                stream.abort()
        assert link.answer(sequence, deadline_seconds=10).version == sequence
    link.pull(deadline_seconds=10)
    np.testing.assert_array_equal(link.parameters, expected)
    assert server.applied == [(0, sequence) for sequence in range(1, 7)]
    link.close()


def test_strangers_do_not_get_in(served: tuple[StandIn, TcpService], files: dict[str, Path]) -> None:
    server, found = served
    contexts = {
        "a certificate of another authority": worker_context(files, "stranger"),
        "a worker that trusts another authority": worker_context(files, "worker", "elsewhere"),
        "no TLS at all": None,
    }
    for context in contexts.values():
        with pytest.raises(Fault, match="no parameter server answers"):
            connect(found, context, connect_seconds=0.4, silence_seconds=0.4)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.minimum_version = ssl.TLSVersion.TLSv1_3
    bare.load_verify_locations(files["authority"])
    with pytest.raises(Fault):  # a worker without a certificate
        connect(found, bare, connect_seconds=0.4, silence_seconds=0.4)
    assert server.applied == []
    link = connect(found, worker_context(files, "worker"))
    link.ping(deadline_seconds=5)
    link.close()


def test_a_context_that_is_not_mutual_is_refused(
    served: tuple[StandIn, TcpService], files: dict[str, Path]
) -> None:
    server, found = served
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(InputError, match="without a certificate"):
        TcpService(
            server.memory, job=JOB, token=TOKEN, tls=lax, server_bell=server.server_bell,
            worker_bells=server.worker_bells,
        )  # fmt: skip
    old = worker_context(files, "worker")
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(InputError, match=r"less than TLS 1\.3"):
        connect(found, old)
    with pytest.raises(InputError, match="cannot use"):
        mutual_tls(
            "worker", certificate=files["authority"], key=files["worker_key"], authority=files["authority"]
        )
