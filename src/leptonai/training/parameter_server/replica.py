"""Primary and backup: the primary's half.

Everything that changes the shard is an update (some pushes, applied as one) or the end of a push without one
(dropped or refused). The primary sends each to the backup, in the order in which it does them, and waits for
the backup to have done the same **before it answers the worker**. So:

- an answered push is in both;
- a push that is in the backup but not answered is answered by the backup when the worker asks again, since the
  backup keeps the slots' sequence numbers too: it is not applied twice;
- a push that is only in the primary, or only half sent, was not answered: the worker hands it to the backup.

A primary that does not hear from its backup must not answer, and so stops: it cannot know whether the backup
has been promoted. Only the launcher, which promotes, may let it go on alone (:meth:`Replicator.close`, and a
server without one).
"""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Callable

import numpy as np

from leptonai.core.errors import Fault, LeptonError
from leptonai.training.parameter_server.frames import (
    FRAME_BYTES,
    REGION_CHUNKS,
    REGION_PARAMETERS,
    REGION_READS,
    REGION_SLOTS,
    REGION_VERSION,
    REPLICA_SLOT,
    WITH_READS,
    Frame,
    Malformed,
    Op,
    encode,
)
from leptonai.training.parameter_server.intent import Push, Update
from leptonai.training.parameter_server.memory import APPLIED, Header, ShardMemory, Slot
from leptonai.training.parameter_server.tcp_regions import region_array, send_region
from leptonai.training.parameter_server.tcp_session import BROKEN, Session
from leptonai.training.parameter_server.tcp_stream import Stream, as_bytes

REQUEST_WORDS = slice(Slot.OP, Slot.ANSWERED)
"""What a worker wrote about its push: 16 words, which go to the backup as they are."""
_LR = struct.Struct("<d")
_MEMBER = struct.Struct(f"<QQdQ{8 * (Slot.ANSWERED - Slot.OP)}s")


class BackupLost(Fault):
    """The backup did not do what the primary did, as far as the primary knows: it may have been promoted."""


class Replicator:
    """Keeps a backup in step; used by the one thread that applies updates.

    Making one copies the whole shard to the backup, so no update may be under way.

    Args:
        memory: of the primary.
        address: of the :class:`~leptonai.training.parameter_server.backup.Backup`.
        job, token: of the run.
        tls: a mutual TLS context, or None on loopback.
        with_reads: also send what each worker had read; needed with delay compensation only.
        deadline_seconds: how long the backup may take for one update, a broken connection included.
        silence_seconds: how long it may say nothing before a new connection is tried.

    Raises:
        Refused: by the backup: another job, version or token.
        Fault: it does not answer.
    """

    def __init__(
        self, memory: ShardMemory, address: tuple[str, int], *, job: bytes, token: bytes,
        tls: ssl.SSLContext | None = None, with_reads: bool = False, deadline_seconds: float = 10.0,
        silence_seconds: float = 3.0,
    ) -> None:  # fmt: skip
        self._memory, self._with_reads = memory, with_reads
        self._deadline_seconds = deadline_seconds
        self._session = Session(
            [address], job=job, token=token, slot=REPLICA_SLOT, tls=tls, num_streams=1,
            silence_seconds=silence_seconds,
        )  # fmt: skip
        self._number = 0
        self._backup: int | None = None
        try:
            self._persist(self._seed)
        except BaseException:
            self._session.close()
            raise

    def before_answer(self, update: Update) -> None:
        """All chunks of ``update`` are done and nothing of it is answered yet: have the backup do the same.

        Raises:
            BackupLost: it did not, or it did something else. Nothing may be answered then.
        """
        self._number += 1
        body = _LR.pack(update.lr) + b"".join(self._member(push) for push in update.pushes)
        head = Frame(
            op=Op.UPDATE, flags=WITH_READS if self._with_reads else 0, service=APPLIED, slot=REPLICA_SLOT,
            sequence=self._number, start=update.start, stop=update.stop, offset=update.version,
            total=len(update.pushes),
        )  # fmt: skip

        def tell(stream: Stream) -> None:
            stream.send(encode(head, body))
            for push in update.pushes:
                self._send_push(stream, push, update)
            self._acknowledged(stream, update.version + 1)

        self._insist(tell)

    def before_ending(self, slot: int, sequence: int, verdict: int) -> None:
        """A push is about to be answered ``verdict`` (dropped or refused) without an update.

        Raises:
            BackupLost: the backup did not do the same. It may not be answered then.
        """
        self._number += 1
        version = int(self._memory.header[Header.VERSION])
        body = _LR.pack(0.0) + self._member(Push(slot=slot, sequence=sequence, weight=0.0))
        head = Frame(
            op=Op.UPDATE, service=verdict, slot=REPLICA_SLOT, sequence=self._number, offset=version, total=1
        )

        def tell(stream: Stream) -> None:
            stream.send(encode(head, body))
            self._acknowledged(stream, version)

        self._insist(tell)

    def check(self) -> None:
        """See, between updates, whether the backup is still there; a broken connection is made anew.

        A primary that has nothing to tell would not notice otherwise, and keep workers that wait for a group.

        Raises:
            BackupLost: it is not.
        """
        if not self._session.is_open or self._session.streams[0].has_ended():
            self._session.drop()
            self._insist(lambda stream: None)

    def close(self) -> None:
        """Leave the backup as it is."""
        self._session.close()

    def _insist(self, tell: Callable[[Stream], None]) -> None:
        try:
            self._persist(tell)
        except LeptonError as error:  # Refused too: a backup that was promoted has no place for a primary
            raise BackupLost(f"the shard's backup is lost: {error.message}", hint=error.hint) from error

    def _persist(self, tell: Callable[[Stream], None]) -> None:
        deadline = time.monotonic() + self._deadline_seconds
        while True:
            try:
                if not self._session.is_open:
                    self._connect(deadline)
                self._session.set_patience(deadline)
                tell(self._session.streams[0])
                return
            except BROKEN as error:
                self._session.drop()
                if time.monotonic() >= deadline:
                    raise Fault(f"the shard's backup does not answer: {error}") from error
                time.sleep(0.01)

    def _connect(self, deadline: float) -> None:
        backup = self._session.open(deadline)
        # A backup that was started anew holds nothing: to go on with it would lose what was acknowledged.
        if self._backup not in (None, backup.offered):
            self._session.drop()
            raise Fault("the shard's backup is not the one it was; it has to be seeded anew")
        shape = self._memory.shape
        if (backup.num_elements, backup.num_states) != (shape.num_elements, shape.num_states):
            self._session.drop()
            raise Fault("the shard's backup holds a shard of another shape")
        self._backup = backup.offered

    def _seed(self, stream: Stream) -> None:
        memory = self._memory
        slots = memory.slots.reshape(-1)
        regions = {region: region_array(memory, region) for region in range(1 + memory.shape.num_states)}
        regions |= {REGION_CHUNKS: memory.chunks, REGION_SLOTS: slots}
        # The version comes last: with it the backup is whole.
        regions[REGION_VERSION] = region_array(memory, REGION_VERSION)
        assert REGION_PARAMETERS in regions
        for region, array in regions.items():
            head = Frame(op=Op.STORE, slot=REPLICA_SLOT, service=region, start=0, stop=len(array))
            stream.send(encode(head))
            send_region(stream, region, REPLICA_SLOT, 0, as_bytes(array), array.itemsize)
            frame = stream.receive_frame()
            if frame.op is not Op.STORED:
                raise Malformed(f"{frame.op.name} where STORED belongs")

    def _member(self, push: Push) -> bytes:
        request = self._memory.slots[push.slot, REQUEST_WORDS].tobytes()
        return _MEMBER.pack(push.slot, push.sequence, push.weight, int(push.alone), request)

    def _send_push(self, stream: Stream, push: Push, update: Update) -> None:
        words = self._memory.slots[push.slot]
        count, codec = int(words[Slot.PAYLOAD_BYTES]), int(words[Slot.CODEC])
        if count:
            payload = memoryview(as_bytes(self._memory.payload(push.slot)))[:count]
        else:
            payload = as_bytes(self._memory.gradients(push.slot)[update.start : update.stop])
        for offset in range(0, len(payload), FRAME_BYTES):
            part = payload[offset : offset + FRAME_BYTES]
            head = Frame(
                op=Op.DATA, slot=push.slot, codec=codec if count else -1, sequence=push.sequence,
                start=update.start, stop=update.stop, offset=offset, total=len(payload), length=len(part),
            )  # fmt: skip
            stream.send(encode(head), part)
        if self._with_reads:
            reads = self._memory.reads(push.slot)[update.start : update.stop]
            send_region(stream, REGION_READS, push.slot, update.start, as_bytes(reads), reads.itemsize)

    def _acknowledged(self, stream: Stream, version: int) -> None:
        frame = stream.receive_frame()
        if frame.op is Op.REFUSE:
            reason = stream.receive_body(frame).decode(errors="replace")
            raise Fault(f"the shard's backup does not follow: {reason}", hint="seed it anew")
        if frame.op is not Op.ACK or frame.sequence != self._number:
            raise Malformed("another answer than the backup owes")
        if frame.offset < version:
            raise Fault(f"the shard's backup is at version {frame.offset}, the primary at {version}")


def read_members(body: bytes) -> tuple[float, list[tuple[Push, np.ndarray[tuple[int], np.dtype[np.uint64]]]]]:
    """The learning rate and the pushes in an UPDATE's body, each with its request words.

    Raises:
        Malformed: it is none.
    """
    if len(body) < _LR.size or (len(body) - _LR.size) % _MEMBER.size:
        raise Malformed("an update of a length that cannot be")
    members = []
    for slot, sequence, weight, alone, request in _MEMBER.iter_unpack(body[_LR.size :]):
        push = Push(slot=slot, sequence=sequence, weight=weight, alone=bool(alone))
        members.append((push, np.frombuffer(request, np.uint64)))
    return _LR.unpack_from(body)[0], members
