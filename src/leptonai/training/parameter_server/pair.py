"""One server of a pair: follows a primary, is promoted, serves workers, is given a backup of its own.

Each server of a pair has one address, which workers and the other server use alike. A backup sends workers away,
and they try the other address until one lets them in: given both once, they need not be told of a promotion, and
a new backup that takes the dead server's address makes the pair whole again.

Who promotes stands outside, since two servers that lost sight of each other cannot tell which of them is cut
off. Promoting is always safe: the old primary, alive or not, cannot answer a push any more. Not safe, and for
the one who promotes to rule out, is to let a primary go on alone whose backup was promoted.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.backup import Backup
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.replica import BackupLost, Replicator
from leptonai.training.parameter_server.shard import Outcome, Shard
from leptonai.training.parameter_server.tcp_server import TcpService

Role = Literal["idle", "following", "serving", "halted"]

_CHECK_SECONDS = 0.1
# An outgoing connection of this machine may hold the port for a moment when it is bound again.
_BIND_SECONDS, _BIND_AGAIN_SECONDS = 5.0, 0.02


class PairServer:
    """A shard that is a backup or a primary. One thread uses it, and serves with
    :func:`~leptonai.training.parameter_server.server.serve`, or calls :meth:`serve_pending`.

    Args:
        shard: over memory of this server's own. It rings ``worker_bells`` when it answers.
        bell, worker_bells: as of a :class:`~leptonai.training.parameter_server.tcp_server.TcpService`.
        bind: address and port (0: any free one), kept through all roles; off loopback ``tls`` is obligatory.
        job, token: of the run.
        tls_server, tls_client: mutual TLS contexts, to be called and to call the other server with; or None.
        deadline_seconds: how long the backup may take for one update before this server halts.
        halted: told why, when the backup is lost and nothing may be answered any more.

    Attributes:
        role: ``idle`` until told to follow or to lead; ``halted`` when its backup is lost.
        address: where it is found; port 0 until it first follows or leads, if any free one was asked for.
    """

    def __init__(
        self, shard: Shard, *, bell: Bell, worker_bells: Sequence[Bell],
        bind: tuple[str, int] = ("127.0.0.1", 0), job: bytes, token: bytes,
        tls_server: ssl.SSLContext | None = None, tls_client: ssl.SSLContext | None = None,
        deadline_seconds: float = 10.0, halted: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._shard, self._bell, self._worker_bells = shard, bell, worker_bells
        self._job, self._token = job, token
        self._tls_server, self._tls_client = tls_server, tls_client
        self._deadline_seconds, self._on_halt = deadline_seconds, halted
        self._backup: Backup | None = None
        self._service: TcpService | None = None
        self._replicator: Replicator | None = None
        self._check_at = 0.0
        self.role: Role = "idle"
        self.address = bind

    def follow(self) -> None:
        """Be a backup, on memory that is fresh.

        Raises:
            Fault: it has been in another role.
            InputError: see :class:`~leptonai.training.parameter_server.tcp_listener.Listener`.
        """
        self._expect("idle")
        self._backup = Backup(
            self._shard.memory, apply=self._shard.repeat, end=self._shard.repeat_ending,
            bind=self.address, job=self._job, token=self._token, tls=self._tls_server,
        )  # fmt: skip
        self.address, self.role = self._backup.address, "following"

    def lead(self) -> None:
        """Be the first primary, on memory that holds the parameters, without a backup so far."""
        self._expect("idle")
        self._open()

    def promote(self) -> None:
        """Take the primary's place, with all that was acknowledged; serves workers when it returns.

        Raises:
            Fault: it is no backup, or was never whole.
        """
        self._expect("following")
        assert self._backup is not None
        self._backup.promote()
        self._backup = None
        if self._shard.needs_reads:
            # What workers had read went with the primary. A push brought again is compensated for what has
            # changed from here on.
            memory = self._shard.memory
            for slot in range(memory.shape.num_slots):
                memory.reads(slot)[:] = memory.parameters
        self._open()

    def replicate(self, address: tuple[str, int]) -> None:
        """Give this primary a backup: returns when it holds the whole shard. Nothing is applied meanwhile.

        Raises:
            Fault: this server does not serve, or there is no backup at ``address``; it then goes on as it was.
            Refused: by the backup.
        """
        self._expect("serving")
        replicator = Replicator(
            self._shard.memory, address, job=self._job, token=self._token, tls=self._tls_client,
            with_reads=self._shard.needs_reads, deadline_seconds=self._deadline_seconds,
        )  # fmt: skip
        self._leave_backup()
        self._shard.replication = self._replicator = replicator

    def go_on_alone(self) -> None:
        """Serve without a backup, also after a halt. Only when the backup was not, and will not be, promoted."""
        if self.role == "halted":
            self._open()
        else:
            self._expect("serving")
            self._leave_backup()

    def serve_pending(self) -> bool:
        """Apply what is offered alone; whether there was anything. Halts when the backup is lost."""
        if self.role != "serving":
            return False
        pending = self._shard.pending()
        with contextlib.suppress(BackupLost), self._halting():
            for slot in pending:
                self._shard.apply(slot)
            now = time.monotonic()
            if self._replicator is not None and not pending and now > self._check_at:
                self._check_at = now + _CHECK_SECONDS
                self._replicator.check()
        return bool(pending)

    def ready(self, members: Sequence[tuple[int, int, float]]) -> bool:
        """Whether this server can apply the group now."""
        return self.role == "serving" and self._shard.ready(members)

    def apply_group(
        self, members: Sequence[tuple[int, int, float]], *, lr: float, start: int | None = None,
        stop: int | None = None,
    ) -> list[Outcome]:  # fmt: skip
        """See :meth:`~leptonai.training.parameter_server.shard.Shard.apply_group`. To be asked again of the server
        that is promoted, since it changes nothing where it was done.

        Raises:
            Fault: a push has not come, or this server does not serve.
            BackupLost: it has halted.
        """
        self._expect("serving")
        with self._halting():
            return self._shard.apply_group(members, lr=lr, start=start, stop=stop)

    def drop(self, slot: int, sequence: int) -> Outcome:
        """See :meth:`~leptonai.training.parameter_server.shard.Shard.drop`; raises as :meth:`apply_group` does."""
        self._expect("serving")
        with self._halting():
            return self._shard.drop(slot, sequence)

    def close(self) -> None:
        """End all connections."""
        if self._backup is not None:
            self._backup.close()
        if self._service is not None:
            self._service.close()
        self._leave_backup()
        self._backup = self._service = None
        self.role = "idle"

    def _open(self) -> None:
        """Finish what was under way, then let workers in."""
        self._shard.recover()
        deadline = time.monotonic() + _BIND_SECONDS
        while self._service is None:
            try:
                self._service = TcpService(
                    self._shard.memory, bind=self.address, job=self._job, token=self._token,
                    tls=self._tls_server, server_bell=self._bell, worker_bells=self._worker_bells,
                )  # fmt: skip
            except InputError:
                if not self.address[1] or time.monotonic() > deadline:
                    raise
                time.sleep(_BIND_AGAIN_SECONDS)
        self.address, self.role = self._service.address, "serving"

    @contextlib.contextmanager
    def _halting(self) -> Iterator[None]:
        """Workers are sent away when the backup is lost: if it was promoted, that is where they are served."""
        try:
            yield
        except BackupLost as error:
            self.role = "halted"
            self._leave_backup()
            if self._service is not None:
                self._service.close()
                self._service = None
            self._on_halt(error.message)
            raise

    def _leave_backup(self) -> None:
        self._shard.replication = None
        if self._replicator is not None:
            self._replicator.close()
            self._replicator = None

    def _expect(self, role: Role) -> None:
        if self.role != role:
            raise Fault(f"this server of the pair is {self.role}, not {role}")
