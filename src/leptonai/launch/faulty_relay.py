"""A relay on loopback between a worker and a server's TCP address, where link faults of a script happen.

Neither side knows of it: what they see is what a bad network would show them.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from leptonai.launch.saboteur import Saboteur

_CHUNK_BYTES = 1 << 16
_MAGIC = b"LPSW"  # frames begin with it; see leptonai.training.parameter_server.frames
_LOOK_SECONDS = 0.05


class FaultyRelay:
    """Passes bytes on to ``target`` and back, as faithfully as the script allows.

    Args:
        target: the server's address.
        saboteur: of the process whose link this is; it is asked about each piece that passes.

    Attributes:
        address: where to connect instead.
    """

    def __init__(self, target: tuple[str, int], saboteur: Saboteur) -> None:
        self._target, self._saboteur = target, saboteur
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_LOOK_SECONDS)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._start(self._accept)

    def close(self) -> None:
        """End all connections and threads."""
        self._closing.set()
        self._reset()
        for thread in list(self._threads):
            thread.join(timeout=10.0)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True, name="faulty-relay")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(OSError):  # nobody came, or the server is away: then this side is reset
                near, _ = self._listener.accept()
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target, timeout=5.0)
        except OSError:
            near.close()
            raise
        for side in (near, far):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side.settimeout(_LOOK_SECONDS)
        with self._lock:
            self._pairs.append((near, far))
        self._start(self._pump, near, far, True)
        self._start(self._pump, far, near, False)

    def _pump(self, source: socket.socket, sink: socket.socket, outward: bool) -> None:
        """Until one side ends; what comes from the worker's side may be corrupted."""
        try:
            while not self._closing.is_set():
                if self._saboteur.link_drop():
                    self._reset()
                    return
                if self._saboteur.link_cut():
                    self._closing.wait(_LOOK_SECONDS)
                    continue
                try:
                    data = source.recv(_CHUNK_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    return
                self._pass_on(sink, self._corrupted(data) if outward else data)
        except OSError:
            pass  # one side has gone; the other learns it below
        finally:
            for side in (source, sink):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()

    def _corrupted(self, data: bytes) -> bytes:
        at = max(0, data.find(_MAGIC))  # encrypted bytes are as good anywhere
        return data[:at] + self._saboteur.on_frame(data[at:])

    def _pass_on(self, sink: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                view = view[sink.send(view) :]

    def _reset(self) -> None:
        """End every connection at once, the hard way: RST, not FIN."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for side in pair:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    side.shutdown(socket.SHUT_RDWR)
