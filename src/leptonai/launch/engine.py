"""Starting the engine of a run.

Light to import, so that a command can start it before anything else: the engine's own imports take seconds,
in which the launcher reads its files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from leptonai.compute.engines.local import LocalEngine

FrameworkName = Literal["pytorch", "tensorflow"]

ENTRY = "leptonai.launch.worker:main"
# Imported once, before the workers are forked. Nothing of these starts a thread that would make a fork unsound.
COMMON = (
    "torch.distributed", "leptonai.launch.worker", "leptonai.launch.scout", "leptonai.training.loop",
    "leptonai.training.pytorch.exchange", "leptonai.training.pytorch.profile",
)  # fmt: skip
PRELOAD: dict[FrameworkName, tuple[str, ...]] = {
    # torch._dynamo is imported by the first optimizer and takes as long as torch itself.
    "pytorch": ("torch", "torch._dynamo", "torch.nn.parallel", *COMMON, "leptonai.training.pytorch.learner"),
    "tensorflow": (*COMMON, "leptonai.training.tensorflow.learner", "leptonai.training.tensorflow.profile"),
}


@contextlib.contextmanager
def start_engine(framework: FrameworkName = "pytorch") -> Iterator[LocalEngine]:
    """The local engine with a framework and our worker imported, closed at the end.

    A guess: workers of the other framework run too, they only start later.
    """
    engine = LocalEngine(entry=ENTRY, preload=PRELOAD[framework])
    try:
        yield engine
    finally:
        engine.close()


def likely_framework(job_file: Path) -> FrameworkName:
    """Which framework a job file seems to use, by its words; nothing of it is run."""
    try:
        words = job_file.read_bytes()
    except OSError:
        return "pytorch"
    return "tensorflow" if b"keras" in words or b"tensorflow" in words else "pytorch"
