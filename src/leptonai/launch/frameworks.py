"""Which adapter serves a job's model; the adapters themselves are imported only when needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from leptonai.compute.plan import Tuning
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError
from leptonai.launch.engine import FrameworkName

if TYPE_CHECKING:
    from leptonai.training.data.dataset import Data
    from leptonai.training.job import TrainJob
    from leptonai.training.learner import Exchange, Learner
    from leptonai.training.parameter_server.flat import FlatLearner
    from leptonai.training.pytorch.passes import TorchOptions
    from leptonai.training.step_method import StepMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a learner must know of where and what it computes.

    Args:
        device: ``cpu`` or ``cuda:N``.
        some_unused: the loss does not reach every trainable parameter.
    """

    device: str
    some_unused: bool


class Framework(Protocol):
    """What launch needs of a framework's adapter; ``profile`` also names the parameters the loss does not reach."""

    def learner(
        self,
        job: TrainJob,
        exchange: Exchange,
        tuning: Tuning,
        place: Place,
        announce: Callable[[], None],
        method: StepMethod | None,
    ) -> Learner: ...

    def flat_learner(self, job: TrainJob, tuning: Tuning, place: Place) -> FlatLearner: ...

    def profile(self, job: TrainJob, data: Data, model: Any) -> tuple[Workload, tuple[str, ...]]: ...

    def tune(self, job: TrainJob, data: Data, *, threads: int, num_workers: int, device: str) -> Tuning: ...

    def configure(self, threads: int) -> None: ...


@dataclass(frozen=True, slots=True)
class PyTorchFramework:
    """PyTorch, on CPUs and GPUs."""

    def learner(
        self,
        job: TrainJob,
        exchange: Exchange,
        tuning: Tuning,
        place: Place,
        announce: Callable[[], None],
        method: StepMethod | None,
    ) -> Learner:
        if method is not None:
            from leptonai.training.pytorch.summed import SummedLearner

            return SummedLearner(job, exchange, torch_options(tuning, place), method, announce)
        from leptonai.training.pytorch.learner import TorchLearner

        return TorchLearner(job, exchange, torch_options(tuning, place), announce)

    def flat_learner(self, job: TrainJob, tuning: Tuning, place: Place) -> FlatLearner:
        from leptonai.training.pytorch.flat import TorchFlatLearner

        return TorchFlatLearner(job, torch_options(tuning, place))

    def profile(self, job: TrainJob, data: Data, model: Any) -> tuple[Workload, tuple[str, ...]]:
        from leptonai.training.pytorch.profile import profile

        return profile(job, data, model)

    def tune(self, job: TrainJob, data: Data, *, threads: int, num_workers: int, device: str) -> Tuning:
        from leptonai.training.pytorch.autotune import autotune

        return autotune(job, data, threads=threads, num_workers=num_workers, device=device)

    def configure(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class TensorFlowFramework:
    """Keras models on TensorFlow, on CPUs."""

    def learner(
        self,
        job: TrainJob,
        exchange: Exchange,
        tuning: Tuning,
        place: Place,
        announce: Callable[[], None],
        method: StepMethod | None,
    ) -> Learner:
        from leptonai.training.learner import Announced
        from leptonai.training.tensorflow.learner import KerasLearner

        return KerasLearner(job, Announced(exchange, announce), tuning=tuning, method=method)

    def flat_learner(self, job: TrainJob, tuning: Tuning, place: Place) -> FlatLearner:
        from leptonai.training.tensorflow.flat import KerasFlatLearner

        return KerasFlatLearner(job, tuning)

    def profile(self, job: TrainJob, data: Data, model: Any) -> tuple[Workload, tuple[str, ...]]:
        from leptonai.training.tensorflow.profile import profile_keras

        return profile_keras(model, job, data), ()

    def tune(self, job: TrainJob, data: Data, *, threads: int, num_workers: int, device: str) -> Tuning:
        # A Keras step is one compiled graph already; there is nothing of the kind to choose.
        from leptonai.training.tuning import untuned

        return untuned(job, threads=threads, why="a Keras step is always one compiled graph")

    def configure(self, threads: int) -> None:
        from leptonai.training.tensorflow.learner import configure

        configure(threads)


def torch_options(tuning: Tuning, place: Place) -> TorchOptions:
    """A plan's tuning as the PyTorch adapter takes it."""
    from leptonai.training.pytorch.passes import TorchOptions

    return TorchOptions(
        precision=tuning.precision,
        memory_format=tuning.memory_format,
        compile=tuning.compile,
        device=place.device,
        some_unused=place.some_unused,
    )


FRAMEWORKS: dict[FrameworkName, Callable[[], Framework]] = {
    "pytorch": PyTorchFramework,
    "tensorflow": TensorFlowFramework,
}


def framework_of(model: Any) -> FrameworkName:
    """Which framework a model belongs to, without importing either.

    Raises:
        InputError: neither a ``torch.nn.Module`` nor a Keras model.
    """
    modules = {cls.__module__.split(".")[0] for cls in type(model).__mro__}
    if "keras" in modules:  # Keras on a torch backend is a Module too, so it is asked first
        return "tensorflow"
    if "torch" in modules:
        return "pytorch"
    raise InputError(
        f"TrainJob: model() returned {type(model).__name__}, expected a torch.nn.Module or a Keras model"
    )
