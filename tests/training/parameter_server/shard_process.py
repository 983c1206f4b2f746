"""A process with a stand-in shard, or a worker of one, told what to do by JSON lines; ends with its input.

Roles: ``primary`` serves at once; ``backup`` follows until told to promote; ``worker`` pushes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.backup import Backup
from leptonai.training.parameter_server.intent import Push, Update
from leptonai.training.parameter_server.link import Offer
from leptonai.training.parameter_server.memory import Header, ShardMemory, Slot
from leptonai.training.parameter_server.replica import Replicator
from leptonai.training.parameter_server.tcp_link import TcpLink
from leptonai.training.parameter_server.tcp_server import TcpService
from leptonai.training.parameter_server.tls import mutual_tls
from tests.training.parameter_server.tcp_stand_in import (
    JOB,
    TOKEN,
    StandIn,
    answer_push,
    apply_push,
    small_shape,
)

SHAPE = small_shape(num_elements=400_000, chunk_elements=1 << 16)


def whole_numbers(slot: int, sequence: int) -> NDArray[np.float32]:
    """A gradient whose sums are exact in any order."""
    random = np.random.default_rng([slot, sequence])
    return random.integers(-8, 9, SHAPE.num_elements).astype(np.float32)


def parameters_after(last: dict[int, int]) -> NDArray[np.float32]:
    """What pushes 1 to ``last[slot]`` of each slot, lr 1, make of zeros."""
    total = np.zeros(SHAPE.num_elements, np.float32)
    for slot, count in last.items():
        for sequence in range(1, count + 1):
            total -= whole_numbers(slot, sequence)
    return total


def digest(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def commands() -> Any:
    for line in sys.stdin:
        yield json.loads(line)


def tls_of(said: dict[str, Any], side: Any) -> Any:
    if "tls" not in said:
        return None
    folder = Path(said["tls"])
    return mutual_tls(
        side,
        certificate=folder / f"{side}.pem",
        key=folder / f"{side}.key",
        authority=folder / "authority.pem",
    )


def replicate(server: StandIn, address: list[Any]) -> None:
    """Give the server a backup, between two updates."""

    def attach() -> None:
        memory = server.memory
        replicator = Replicator(memory, (address[0], address[1]), job=JOB, token=TOKEN)

        def before_answer(slot: int) -> None:
            words = memory.slots[slot]
            push = Push(slot=slot, sequence=int(words[Slot.OFFERED]), weight=1.0, alone=True)
            replicator.before_answer(
                Update(
                    pushes=(push,), start=int(words[Slot.START]), stop=int(words[Slot.STOP]),
                    lr=memory.slot_float(slot, Slot.LR), version=int(memory.header[Header.VERSION]),
                )
            )  # fmt: skip

        server.before_answer = before_answer
        say(replicated=True)

    server.between.append(attach)


def serve(said: dict[str, Any], lines: Any, memory: ShardMemory | None = None) -> None:
    server = StandIn(SHAPE, memory=memory)
    found = TcpService(
        server.memory, bind=(said.get("bind", "127.0.0.1"), 0), job=JOB, token=TOKEN,
        server_bell=server.server_bell, worker_bells=server.worker_bells, tls=tls_of(said, "server"),
    )  # fmt: skip
    say(address=list(found.address))
    for line in lines:
        if "replicate" in line:
            replicate(server, line["replicate"])
        elif "report" in line:
            say(
                digest=digest(server.memory.parameters),
                answered=server.memory.slots[:, Slot.ANSWERED].tolist(),
                version=int(server.memory.header[Header.VERSION]),
            )
    found.close()
    server.close()


def follow(said: dict[str, Any], lines: Any) -> None:
    memory = ShardMemory.create(SHAPE)

    def apply(update: Update) -> None:
        for push in update.pushes:
            apply_push(memory, push.slot)
            answer_push(memory, push.slot)

    def end(slot: int, sequence: int, verdict: int) -> None:
        answer_push(memory, slot, verdict)

    backup = Backup(memory, apply=apply, end=end, job=JOB, token=TOKEN)
    say(follows=list(backup.address))
    for _ in lines:
        backup.promote()
        serve(said, lines, memory)
        return
    backup.close()


def work(said: dict[str, Any], lines: Any) -> None:
    slot = said["slot"]
    link = TcpLink(
        [tuple(said["address"])], job=JOB, token=TOKEN, slot=slot, num_elements=SHAPE.num_elements,
        tls=tls_of(said, "worker"), silence_seconds=0.4, num_streams=2,
    )  # fmt: skip
    ended = threading.Event()

    def listen() -> None:
        for _ in lines:
            pass
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    sequence = 0
    while not ended.is_set() and sequence < said["pushes"]:
        sequence += 1
        link.gradients[:] = whole_numbers(slot, sequence)
        link.offer(Offer(sequence=sequence, start=0, stop=SHAPE.num_elements, lr=1.0))
        link.answer(sequence, deadline_seconds=30)
        link.pull(deadline_seconds=30)
        say(answered=sequence)
    say(done=sequence, digest=digest(link.parameters))
    link.close()


if __name__ == "__main__":
    first = json.loads(sys.argv[1])
    {"primary": serve, "backup": follow, "worker": work}[first["role"]](first, commands())
    sys.stdout.flush()
    os._exit(0)
