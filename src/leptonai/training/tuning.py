"""How a job computes when nothing is measured."""

from __future__ import annotations

from leptonai.compute.plan import Tuning
from leptonai.training.job import TrainJob


def untuned(job: TrainJob, *, threads: int, why: str = "autotune is off") -> Tuning:
    """What the job itself asks for: float32 and nothing special where it says ``auto``."""
    return Tuning(
        precision="bfloat16" if job.precision == "bfloat16" else "float32",
        memory_format="channels_last" if job.speed.memory_format == "channels_last" else "contiguous",
        compile=job.speed.compile == "on",
        threads=threads,
        why=why,
    )
