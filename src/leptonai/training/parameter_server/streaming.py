"""When each fragment of Streaming DiLoCo is sent and when its result is mixed in: pure functions of the step.

Steps are counted from 1: step ``t`` is the time right after a worker's ``t``-th local step. All workers follow
the same schedule. A fragment is never in flight twice, as ``overlap`` is less than ``steps``.
"""

from __future__ import annotations

from leptonai.training.parameter_server.consistency import StreamingDiloco


def due(mode: StreamingDiloco, local_step: int) -> tuple[int, ...]:
    """Fragments (0-based) to send after this local step: in any ``steps`` in a row each exactly once.

    >>> mode = StreamingDiloco(steps=6, fragments=2)
    >>> [due(mode, step) for step in range(1, 7)]
    [(), (), (0,), (), (), (1,)]
    """
    if local_step < 1:
        return ()
    phase = local_step % mode.steps
    return tuple(index for index in range(mode.fragments) if _offset(mode, index) == phase)


def arriving(mode: StreamingDiloco, local_step: int) -> tuple[int, ...]:
    """Fragments whose result is mixed in after this local step: those sent ``overlap`` steps before.

    With ``overlap`` 0, those sent after this same step.
    """
    return due(mode, local_step - mode.overlap)


def in_flight(mode: StreamingDiloco, local_step: int) -> tuple[int, ...]:
    """Fragments sent but not yet mixed in once this step's are, the oldest first.

    At the end of the training, or before a checkpoint, their results must be taken in.
    """
    sent = range(local_step - mode.overlap + 1, local_step + 1)
    return tuple(fragment for step in sent for fragment in due(mode, step))


def _offset(mode: StreamingDiloco, fragment: int) -> int:
    return ((fragment + 1) * mode.steps // mode.fragments) % mode.steps
