"""What a codec left out is kept and sent later: nothing of a gradient is lost, some of it comes late."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.codecs.base import Codec, State, codec_state, restore_codec
from leptonai.training.parameter_server.codecs.sparse import RandomK


class ErrorFeedback:
    """One worker's encoder for one range of parameters.

    After each payload, what it decodes to plus :attr:`residual` is what came in plus the residual before, so
    over a run the sum of the payloads plus the residual is the sum of the inputs, to rounding.

    Holds 12 bytes a number: the residual, the one before, and what the last payload decoded to.

    Args:
        codec: not ``randomk(scaled=True)``, with which the residual grows without bound.
        num_elements: of every array encoded.

    Raises:
        InputError: it is.

    Source: Seide et al. 2014; Karimireddy et al. 2019.
    """

    def __init__(self, codec: Codec, num_elements: int) -> None:
        if isinstance(codec, RandomK) and codec.scaled:
            raise InputError(
                f"codec {codec.name}: scaled values cannot be used with error feedback",
                hint="leave scaled out",
            )
        self.codec = codec
        self._residual = np.zeros(num_elements, np.float32)
        self._before = np.zeros(num_elements, np.float32)
        self._sent = np.zeros(num_elements, np.float32)
        self._can_reject = False

    @property
    def residual(self) -> NDArray[np.float32]:
        """What was not sent so far."""
        return self._residual

    def encode(self, values: NDArray[np.float32]) -> bytearray:
        """The payload for ``values`` plus the residual.

        Raises:
            Fault: their sum cannot be encoded; the residual stays as it was.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # the codec refuses what is not finite
            total = np.add(self._residual, values, out=self._before)
        self._can_reject = False  # the residual before the last payload is gone
        payload = self.codec.encode(total)
        self.codec.decode(memoryview(payload), self._sent)
        total -= self._sent
        self._residual, self._before = total, self._residual
        self._can_reject = True
        return payload

    def rejected(self, *, again: bool) -> None:
        """The server did not apply the last payload.

        Args:
            again: its examples will be computed again, so the residual becomes what it was before; if not,
                what the payload held goes back into the residual, to be sent with the next.
        """
        assert self._can_reject, "one payload is given back at most once"
        self._can_reject = False
        if again:
            self._residual, self._before = self._before, self._residual
        else:
            self._residual += self._sent

    def state(self) -> State:
        """The residual, and what the codec needs to go on."""
        inner = {f"codec/{name}": array for name, array in codec_state(self.codec).items()}
        return {"residual": self._residual.copy(), **inner}

    def restore(self, state: State) -> None:
        """Take over what :meth:`state` gave. Raises InputError when it does not fit."""
        residual = state.get("residual")
        if residual is None or residual.shape != self._residual.shape:
            raise InputError(
                f"error feedback: the state kept is not of {self._residual.size} numbers",
                hint="start from zero: what was not sent is lost",
            )
        inner = {name.removeprefix("codec/"): a for name, a in state.items() if name != "residual"}
        restore_codec(self.codec, inner)
        self._residual[:] = residual
        self._can_reject = False
