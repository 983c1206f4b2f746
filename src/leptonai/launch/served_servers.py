"""The server processes of a served run: started, told what to apply, started again when they die."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leptonai.compute.engines.base import Exited, Message, Report, Started, WorkerSpec
from leptonai.core.clock import Clock
from leptonai.core.events import Event, ServerRestarted, ServerStarted
from leptonai.launch.gang import Failure, SignallingEngine, to_error
from leptonai.launch.served_memory import ServedMemory
from leptonai.training.parameter_server.layout import fragment_range
from leptonai.training.parameter_server.work import Apply

POLL_SECONDS = 0.05


@dataclass
class _Group:
    """A group on its way: what each server is told, and who has not acknowledged it."""

    decision: Apply
    lr: float
    orders: list[dict[str, Any]]
    waiting: set[int]


class Servers:
    """All servers of one run.

    Args:
        make_spec: the spec of the server of a shard, by the port it listens on (0: any), if it listens. One that
            dies is started again, and finds its shard where it left it.
        on_loss: told in words of each death; may raise to end the run.
    """

    def __init__(
        self,
        engine: SignallingEngine,
        make_spec: Callable[[int, int], WorkerSpec],
        memory: ServedMemory,
        *,
        clock: Clock,
        on_event: Callable[[Event], None],
        on_loss: Callable[[str], None],
    ) -> None:
        self._engine, self._make_spec, self._memory = engine, make_spec, memory
        self._clock, self._on_event, self._on_loss = clock, on_event, on_loss
        self._names = [make_spec(number, 0).name for number in range(len(memory.shards))]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._serving: set[int] = set()
        self._lost_seconds: dict[int, float] = {}
        self._groups: dict[int, _Group] = {}
        self._stopping = False
        self.kernels = ""
        self.addresses: dict[int, list[Any] | None] = {}

    def start(self) -> None:
        """Start all."""
        for number in range(len(self._names)):
            self._engine.start(self._make_spec(number, 0))

    @property
    def all_serve(self) -> bool:
        """Whether every server is ready."""
        return len(self._serving) == len(self._names)

    @property
    def listening(self) -> list[list[Any]]:
        """Where each server listens, in order; empty if none does."""
        found = [self.addresses.get(number) for number in range(len(self._names))]
        return [address for address in found if address is not None]

    def name(self, server: int) -> str:
        """Of one server's process."""
        return self._names[server]

    def owns(self, name: str) -> bool:
        """Whether a report by this name is a server's."""
        return name in self._numbers

    def hear(self, report: Report) -> list[tuple[Apply, float]]:
        """Take a report of a server; returns the groups that every server has now applied, each with its
        learning rate."""
        server = self._numbers[report.name]
        match report:
            case Started(pid=pid):
                self._on_event(ServerStarted(at_seconds=self._clock.now_seconds(), server=server, pid=pid))
            case Message(values={"serving": {"version": version, "address": address, "kernels": kernels}}):
                self.addresses[server], self.kernels = address, kernels
                self._serves(server, version)
            case Message(values={"group_applied": {"group": number}}):
                group = self._groups.get(number)
                if group is not None:
                    group.waiting.discard(server)
                    if not group.waiting:
                        del self._groups[number]
                        return [(group.decision, group.lr)]
            case Message(values={"failed": failed}):
                raise to_error(Failure(rank=server, **failed))
            case Exited(code=code) if not self._stopping:
                self._serving.discard(server)
                self._lost_seconds[server] = self._clock.monotonic_seconds()
                self._engine.start(
                    self._make_spec(server, self._port(server))
                )  # at once: workers wait for its answers
                self._on_loss(f"parameter server {server} {how_it_ended(code)}")
            case _:
                pass
        return []

    def _port(self, server: int) -> int:
        """Where the one before it listened, so that its workers find it again."""
        address = self.addresses.get(server)
        return 0 if address is None else int(address[1])

    def _serves(self, server: int, version: int) -> None:
        self._serving.add(server)
        if server in self._lost_seconds:
            seconds = self._clock.monotonic_seconds() - self._lost_seconds.pop(server)
            at = self._clock.now_seconds()
            self._on_event(ServerRestarted(at_seconds=at, server=server, seconds=seconds, version=version))
        for group in self._groups.values():
            if server in group.waiting:  # the shard knows if it was done before
                self._engine.send(self._names[server], group.orders[server])

    def apply(self, decision: Apply, lr: float) -> None:
        """Have every shard apply a group; :meth:`hear` tells when all have."""
        members = [(member.worker, member.sequence, member.weight) for member in decision.members]
        orders: list[dict[str, Any]] = []
        for shard in self._memory.shards:
            part = fragment_range(shard.shape.num_elements, decision.fragment, decision.fragments)
            values: Mapping[str, Any] = {"group": decision.group, "members": members, "lr": lr, "range": part}
            orders.append({"apply": values})
        self._groups[decision.group] = _Group(decision, lr, orders, set(range(len(self._names))))
        for server in self._serving:
            self._engine.send(self._names[server], orders[server])

    def stop(self) -> None:
        """Stop all and wait until they are gone."""
        self._stopping = True
        left = set(self._numbers)
        for name in left:
            self._engine.send(name, {"stop": {}})
        while left:
            left -= {report.name for report in self._engine.poll(POLL_SECONDS) if isinstance(report, Exited)}


def how_it_ended(code: int) -> str:
    """The exit status in words.

    >>> how_it_ended(-9)
    'was killed by SIGKILL'
    """
    import signal

    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
