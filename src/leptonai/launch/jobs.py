"""Where a job comes from: a Python file, or a live value on its way to our own child process."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from leptonai.core.errors import InputError, LeptonError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leptonai.training.job import TrainJob

# Setting one of these clears the other: a job has one length.
_EXCLUSIVE = {"steps": "epochs", "epochs": "steps", "loss": "step", "step": "loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """A file that holds a module-level ``job``."""

    path: Path

    @property
    def task(self) -> str:
        """A short name: the file's, or its directory's when the file is just ``job.py``."""
        return self.path.absolute().parent.name if self.path.stem == "job" else self.path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A job made in a running program, such as a notebook.

    Args:
        payload: cloudpickle bytes of a function ``build(arrays) -> TrainJob``. They pass only through a
            private pipe this process's own child inherited, never over disk or network.
        arrays: what ``build`` is given; workers share one copy of them in memory.
        task: a short name.
    """

    payload: bytes
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    task: str = "notebook"


JobSource = JobFile | LiveJob


def load_job(path: Path, overrides: tuple[str, ...] = ()) -> TrainJob:
    """Run the file and take its ``job``, with ``key=value`` overrides applied.

    Raises:
        InputError: the file is missing, raises, has no ``job``, or an override does not fit.
    """
    from leptonai.training.job import TrainJob

    path = path.absolute()
    if not path.is_file():
        raise InputError(f"{path}: no such job file")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("lepton_job", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lepton_job"] = module
    try:
        spec.loader.exec_module(module)
    except LeptonError:
        raise
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        hint = "pip install openlepton[tensorflow]" if missing in ("keras", "tensorflow") else None
        raise InputError(
            f"{path}: {_where(error, path)}there is no module {error.name!r}", hint=hint
        ) from error
    except Exception as error:
        raise InputError(
            f"{path}: {_where(error, path)}{type(error).__name__}: {error}", hint=_trace_of(error, path)
        ) from error
    job = getattr(module, "job", None)
    if not isinstance(job, TrainJob):
        found = "no job" if job is None else f"a job of type {type(job).__name__}"
        raise InputError(
            f"{path}: has {found} at module level",
            hint="end the file with: job = TrainJob(model=..., data=..., ...)",
        )
    return apply_overrides(job, overrides)


def _where(error: BaseException, path: Path) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    return f"line {lines[-1]}: " if lines else ""


def _trace_of(error: BaseException, path: Path) -> str | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"at: {frames[-1].line}" if frames else None


def apply_overrides(job: TrainJob, overrides: tuple[str, ...]) -> TrainJob:
    """The job with ``key=value`` settings replaced; keys may reach inside, as ``optimizer.lr=0.1``.

    Raises:
        InputError: a key is unknown or a value does not fit.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(
                f"--set {override}: expected key=value",
                hint="for example: --set epochs=3 --set optimizer.lr=0.1",
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {override}: cannot read the value") from error
        # YAML wants a dot in 1e-3; people do not.
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        job = _replace(job, key.split("."), value, f"--set {override}")
    return job


def _replace(target: Any, keys: list[str], value: Any, where: str) -> Any:
    names = [item.name for item in dataclasses.fields(target)] if dataclasses.is_dataclass(target) else []
    if target is None:
        name = where.removeprefix("--set ").partition("=")[0].removesuffix(f".{'.'.join(keys)}")
        raise InputError(
            f"{where}: the job has no {name}, so nothing of it can be set",
            hint=f"give the job its {name} first",
        )
    if keys[0] not in names:
        near = difflib.get_close_matches(keys[0], names, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}" if names else None
        raise InputError(f"{where}: {type(target).__name__} has no setting {keys[0]!r}", hint=hint)
    if len(keys) > 1:
        value = _replace(getattr(target, keys[0]), keys[1:], value, where)
    current = getattr(target, keys[0])
    if isinstance(current, str) and isinstance(value, bool):  # YAML reads the words on and off as booleans
        value = "on" if value else "off"
    if callable(current) and not dataclasses.is_dataclass(current):
        raise InputError(f"{where}: {keys[0]} is a function and cannot be set on the command line")
    if (
        isinstance(current, bool) != isinstance(value, bool)
        and current is not None
        and isinstance(current, bool | int | float)
    ):
        raise InputError(f"{where}: expected {type(current).__name__}, found {type(value).__name__}")
    if isinstance(current, int | float) and not isinstance(value, int | float):
        raise InputError(f"{where}: expected a number, found {value!r}")
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    changes = {keys[0]: value}
    if keys[0] in _EXCLUSIVE and value is not None and type(target).__name__ == "TrainJob":
        changes[_EXCLUSIVE[keys[0]]] = None
    return dataclasses.replace(target, **changes)


def identity(
    job: TrainJob,
    *,
    model_shapes: Mapping[str, tuple[int, ...]],
    data: Mapping[str, Any],
    num_examples: int,
    tables: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What makes two runs runs of the same job: every setting that alters results, in JSON-ready words."""
    shapes = repr(sorted((name, tuple(shape)) for name, shape in model_shapes.items()))
    # Left out where there is none, so that runs from before it existed can be resumed.
    server = {} if job.parameter_server is None else {"parameter_server": job.parameter_server.identity}
    if job.privacy is not None:
        users = None if job.privacy.users is None else _Named(_word(job.privacy.users))
        server["privacy"] = repr(dataclasses.replace(job.privacy, users=users))
    if tables:
        speed_only = ("memory_cap_bytes", "batch_rows")
        server["tables"] = repr(
            [{key: each[key] for key in sorted(each) if key not in speed_only} for each in tables]
        )
    return {
        **server,
        "name": job.name,
        "model": f"{len(model_shapes)} tensors, {hashlib.sha256(shapes.encode()).hexdigest()[:16]}",
        "data": dict(data),
        "loss": _word(job.step or job.loss),
        "optimizer": _word(job.optimizer),
        "schedule": _word(job.schedule),
        "global_batch_size": job.global_batch_size,
        "accumulate": job.accumulate,
        "clip_norm": job.clip_norm,
        "precision": job.precision,
        "shuffle": job.shuffle,
        "seed": job.seed,
        "total_steps": job.total_steps(num_examples),
    }


@dataclass(frozen=True, slots=True)
class _Named:
    """Stands in for a function in an identity: its address would differ in every process."""

    name: Any

    def __call__(self) -> Any:
        raise AssertionError


def _word(value: Any) -> Any:
    """A stable name for a setting: values by their repr, functions by their name."""
    if value is None or isinstance(value, str | int | float):
        return value
    if dataclasses.is_dataclass(value):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings in which two identities differ, as sentences."""
    keys = sorted({*old, *new} - {"name"})
    return [f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


BuildJob = Callable[[Mapping[str, Any]], Any]
