"""The entry of a parameter-server process: map its shard, finish what a predecessor left, serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leptonai.launch.saboteur import saboteur_from
from leptonai.launch.served_tables import TABLE_SERVICE, table_service
from leptonai.training.optimizer_words import optimizer_from_json
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.codecs.parse import parse_codec
from leptonai.training.parameter_server.memory import Header, ShardMemory, Slot
from leptonai.training.parameter_server.server import serve
from leptonai.training.parameter_server.shard import Shard
from leptonai.training.parameter_server.tables.service import TableService

if TYPE_CHECKING:
    from leptonai.launch.worker import Line


def run_server(assignment: Mapping[str, Any], line: Line, fds: Sequence[int]) -> None:
    """Serve one shard until the launcher says stop.

    Args:
        assignment: ``server`` (its number), ``optimizer``, ``rules``, ``codec``, ``job`` (64 bits), ``ranges``.
        fds: the shard's memory, this server's bell, one bell a slot, then its part of each table.
    """
    import torch

    torch.set_num_threads(1)
    memory = ShardMemory.attach(fds[0], job=assignment["job"])
    bell, bells = Bell(fds[1]), [Bell(fd) for fd in fds[2 : 2 + memory.shape.num_slots]]
    shard = _shard(memory, assignment, _answered(memory, bells))
    shard.recover()
    number = assignment["server"]
    tables = table_service(
        fds[2 + memory.shape.num_slots :], assignment["tables"], memory, bells,
        server=number, num_servers=assignment["num_servers"], job=assignment["job"],
    )  # fmt: skip
    address = _listen(memory, assignment["listen"], bell, bells, tables)
    version = int(memory.header[Header.VERSION])
    line.send(
        {
            "serving": {
                "server": number, "version": version, "address": address, "kernels": shard.kernels_name,
            }
        }
    )  # fmt: skip
    saboteur = saboteur_from(
        assignment["faults"], "server", number,
        report=lambda fault, step: line.send({"fault": {"number": fault, "step": step}}),
    )  # fmt: skip

    base_rate = optimizer_from_json(assignment["optimizer"]).lr

    def obey(command: Mapping[str, Any]) -> bool:
        if "apply" not in command:
            return False
        values = command["apply"]
        saboteur.at_step(int(memory.header[Header.VERSION]))
        members = [(slot, sequence, weight) for slot, sequence, weight in values["members"]]
        for slot, sequence, _ in members:
            # Over TCP the worker's word that offers it may still be on its way, or lost with the connection; but
            # all of it lay ready on every shard before the worker told the launcher.
            if memory.slots[slot, Slot.OFFERED] < sequence:
                memory.slots[slot, Slot.OFFERED] = sequence
        start, stop = values["range"]
        shard.apply_group(members, lr=values["lr"], start=start, stop=stop)
        tables.apply_group(members, lr_factor=values["lr"] / base_rate)
        version = int(memory.header[Header.VERSION])
        line.send({"group_applied": {"server": number, "group": values["group"], "version": version}})
        return True

    serve(memory, bell, [_Sabotaged(shard, memory, saboteur.at_step), tables], _Commands(line), obey)


def _listen(
    memory: ShardMemory,
    listen: Mapping[str, Any] | None,
    bell: Bell,
    bells: Sequence[Bell],
    tables: TableService,
) -> tuple[str, int] | None:
    """Serve workers over TCP too, if asked; where."""
    if listen is None:
        return None
    from leptonai.training.parameter_server.tcp_server import TcpService

    job, token = bytes.fromhex(listen["job"]), bytes.fromhex(listen["token"])
    bind = ("127.0.0.1", listen["port"])
    return TcpService(
        memory, bind=bind, job=job, token=token, server_bell=bell, worker_bells=bells,
        services={TABLE_SERVICE: tables.handle_request},
    ).address  # fmt: skip


def _shard(memory: ShardMemory, assignment: Mapping[str, Any], answered: Callable[[int], None]) -> Shard:
    rules = assignment["rules"]
    decode = None
    if assignment["codec"]:
        shapes = [(start, tuple(shape)) for start, shape in assignment["shapes"]]
        codec = parse_codec(assignment["codec"], seed=assignment["seed"], shapes=shapes)

        def decode(number: int, payload: memoryview, out: Any) -> None:
            codec.decode(payload, out)

    return Shard(
        memory,
        optimizer_from_json(assignment["optimizer"]),
        delay_compensation=rules["delay_compensation"],
        staleness_scaled_lr=rules["staleness_scaled_lr"],
        age_decay=rules["age_decay"],
        decode=decode,
        ranges=[(first, stop) for first, stop in assignment["ranges"]],
        answered=answered,
    )


def _answered(memory: ShardMemory, bells: Sequence[Bell]) -> Callable[[int], None]:
    """Wakes a worker that sleeps until its push is answered."""
    slots = memory.slots

    def ring(slot: int) -> None:
        if slots[slot, Slot.WORKER_SLEEPING]:
            bells[slot].ring()

    return ring


class _Sabotaged:
    """A shard before whose updates a fault may strike."""

    def __init__(self, shard: Shard, memory: ShardMemory, strike: Callable[[int], None]) -> None:
        self._shard, self._header, self._strike = shard, memory.header, strike

    def serve_pending(self) -> bool:
        """Apply what is offered."""
        pending = self._shard.pending()
        for slot in pending:
            self._strike(int(self._header[Header.VERSION]))
            self._shard.apply(slot)
        return bool(pending)


class _Commands:
    """The launcher's line as the server's loop wants it."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def fileno(self) -> int:
        """To wait on."""
        return self._line.fileno()

    def ready(self) -> Sequence[Mapping[str, Any]]:
        """What has come in."""
        return list(self._line.ready())
