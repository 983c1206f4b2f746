"""Compressed updates from server to workers: both ends land on the same bits.

The server takes its exact step, encodes the change, and then moves its own parameters by what the payload
says rather than by the exact change. A worker that holds the old parameters does the same sum and holds the
new ones, bit for bit. What the payload left out is kept for the next one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.codecs.base import Codec, State, chunks, codec_state, restore_codec
from leptonai.training.parameter_server.codecs.feedback import check_feedback


class CompressedDown:
    """The server's side, for one range of parameters.

    After every publication, shown parameters plus residual are the exact parameters plus the residual before,
    to rounding. A worker that missed a payload takes the shown parameters whole.

    Holds 8 bytes a number.

    Args:
        codec: as for :class:`~leptonai.training.parameter_server.codecs.feedback.ErrorFeedback`.
        num_elements: of the range.
    """

    def __init__(self, codec: Codec, num_elements: int) -> None:
        check_feedback(codec)
        self.codec = codec
        self._residual = np.zeros(num_elements, np.float32)
        self._total = np.zeros(num_elements, np.float32)

    @property
    def residual(self) -> NDArray[np.float32]:
        """By how much the exact parameters are ahead of those shown."""
        return self._residual

    def publish(
        self, old: NDArray[np.float32], new: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> tuple[bytearray, NDArray[np.float32]]:
        """Encode the way from ``old`` to ``new``.

        Args:
            old: what workers hold: the parameters last shown.
            new: the server's after its exact step from ``old``.
            out: where to write the parameters shown; may be ``new`` or ``old`` itself. None: a fresh array.

        Returns:
            The payload, and the parameters that it leads to, which the server must take as its own.

        Raises:
            Fault: the change cannot be encoded; nothing has changed.
        """
        total = self._total
        with np.errstate(invalid="ignore", over="ignore"):  # the codec refuses what is not finite
            np.subtract(new, old, out=total)
            total += self._residual
        payload = self.codec.encode(total)
        receive(self.codec, memoryview(payload), old, total)
        # From what is shown, so that the rounding of old + change is kept too.
        for start, stop in chunks(total.size):
            self._residual[start:stop] += new[start:stop] - total[start:stop]
        if out is None:
            return payload, total.copy()
        out[:] = total
        return payload, out

    def state(self) -> State:
        """The residual, and what the codec needs to go on."""
        inner = {f"codec/{name}": array for name, array in codec_state(self.codec).items()}
        return {"residual": self._residual.copy(), **inner}

    def restore(self, state: State) -> None:
        """Take over what :meth:`state` gave. Raises InputError when it does not fit."""
        residual = state.get("residual")
        if residual is None or residual.shape != self._residual.shape:
            raise InputError(f"compressed updates: the state kept is not of {self._residual.size} numbers")
        inner = {name.removeprefix("codec/"): a for name, a in state.items() if name != "residual"}
        restore_codec(self.codec, inner)
        self._residual[:] = residual


def receive(codec: Codec, payload: memoryview, old: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """The worker's side: ``out`` = ``old`` plus what the payload says.

    Args:
        old: the parameters the server's last publication led to.
        out: where to write; another array than ``old``.

    Raises:
        Fault: the payload is malformed; ``out`` may then hold anything, ``old`` is as it was.
    """
    assert not np.may_share_memory(old, out)
    codec.decode(payload, out)
    out += old
