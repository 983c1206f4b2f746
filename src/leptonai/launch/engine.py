"""Starting the engine of a run.

Light to import, so that a command can start it before anything else: the engine's own imports take seconds,
in which the launcher reads its files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from leptonai.compute.engines.local import LocalEngine

ENTRY = "leptonai.launch.worker:main"
# Imported once, before the workers are forked. Nothing of these starts a thread.
PRELOAD = (
    # torch._dynamo is imported by the first optimizer and takes as long as torch itself.
    "torch", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "torch.utils.flop_counter",
    "leptonai.launch.worker", "leptonai.launch.scout", "leptonai.training.loop", "leptonai.training.pytorch.learner",
    "leptonai.training.pytorch.profile", "leptonai.training.pytorch.exchange",
)  # fmt: skip


@contextlib.contextmanager
def start_engine() -> Iterator[LocalEngine]:
    """The local engine with PyTorch and our worker imported, closed at the end."""
    engine = LocalEngine(entry=ENTRY, preload=PRELOAD)
    try:
        yield engine
    finally:
        engine.close()
