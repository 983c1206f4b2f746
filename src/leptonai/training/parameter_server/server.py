"""The loop of a server process: apply what is offered, obey the launcher, sleep when there is nothing to do."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from leptonai.training.parameter_server.bell import LOOK_AGAIN_SECONDS, SPIN_SECONDS, Bell
from leptonai.training.parameter_server.memory import Header, ShardMemory


class Pushes(Protocol):
    """What the loop serves: a shard, or tables."""

    def serve_pending(self) -> bool:
        """Handle what is waiting; whether there was anything."""
        ...


class Commands(Protocol):
    """The launcher's line."""

    def fileno(self) -> int: ...

    def ready(self) -> Sequence[Mapping[str, Any]]:
        """What has come in, without waiting."""
        ...


def serve(
    memory: ShardMemory,
    bell: Bell,
    services: Sequence[Pushes],
    commands: Commands,
    obey: Callable[[Mapping[str, Any]], bool],
) -> None:
    """Serve until ``obey`` answers False.

    Args:
        memory: its header says when this process sleeps.
        bell: rung by workers that offer something.
        services: asked in turn.
        commands: from the launcher.
        obey: follows one command; False ends the loop.
    """
    header = memory.header.data
    busy_until = time.monotonic() + SPIN_SECONDS
    while True:
        worked = False
        for service in services:
            worked = service.serve_pending() or worked
        for command in commands.ready():
            worked = True
            if not obey(command):
                return
        now = time.monotonic()
        if worked:
            busy_until = now + SPIN_SECONDS
        elif now < busy_until:
            os.sched_yield()
        elif header[Header.SLEEPING]:
            # Looked once more since the flag was set: whatever comes now rings.
            select.select([bell.fd, commands.fileno()], [], [], LOOK_AGAIN_SECONDS)
            header[Header.SLEEPING] = 0
            bell.quiet()
            busy_until = time.monotonic() + SPIN_SECONDS
        else:
            header[Header.SLEEPING] = 1
