"""``lepton export``: the trained weights of a run as one plain file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.cli.find_run import RunArgument, find_run
from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import err, out, print_json, say, shown_path
from leptonai.core.errors import Fault, InputError

if TYPE_CHECKING:
    from leptonai.launch.rundir import RunDirectory
    from leptonai.training.checkpoint import Checkpoint

EXAMPLES = """
[bold]Examples[/bold]

  lepton export last --to weights.safetensors

  lepton export runs/mnist-keras-20260801-120000-1a2b --to model.keras
"""
MODEL_PREFIX = "model/"


def export(
    run: RunArgument,
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="FILE", help="A name ending in .safetensors or .keras.", show_default=False
        ),
    ],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the weights of the latest good checkpoint to one file."""
    if to.suffix not in (".safetensors", ".keras"):
        hint = "end the name in .safetensors or .keras"
        raise InputError(f"{to}: cannot tell the format from {to.suffix or 'no ending'!r}", hint=hint)
    found = find_run(run, home_directory(home))
    checkpoint = latest_checkpoint(found)
    if to.suffix == ".safetensors":
        num_tensors = write_safetensors(checkpoint, to)
    else:
        num_tensors = write_keras(found, checkpoint, to)
    if as_json:
        print_json({"path": str(to.absolute()), "step": checkpoint.step, "num_tensors": num_tensors})
    else:
        say(out(), f"wrote {num_tensors} tensors of step {checkpoint.step} to {shown_path(to)}")


def latest_checkpoint(run: RunDirectory) -> Checkpoint:
    """The latest checkpoint that is whole; damaged ones are passed over, saying so on standard error.

    Raises:
        InputError: the run has saved none yet.
        Fault: all are damaged.
    """
    from leptonai.training.checkpoint import CheckpointStore

    def warn(path: str, reason: str) -> None:
        say(err(), ("warning: ", "bold yellow"), f"{path} is damaged and passed over: {reason}")

    found = CheckpointStore(run.checkpoints_path).load_latest(warn)
    if found is None:
        hint = "wait for the first checkpoint, or ask for one: lepton runs save RUN"
        raise InputError(f"{run.path}: there is no checkpoint to export", hint=hint)
    return found


def write_safetensors(checkpoint: Checkpoint, to: Path) -> int:
    """Write the model's tensors under their own names; the file appears whole or not at all.

    Returns:
        How many tensors were written.
    """
    from leptonai.training.durable import flush_directory, write_durably
    from leptonai.training.tensor_file import encode_tensors

    tensors = {
        name.removeprefix(MODEL_PREFIX): tensor
        for name, tensor in checkpoint.state.tensors.items()
        if name.startswith(MODEL_PREFIX)
    }
    # In the same directory, because a rename is atomic only within one file system.
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        write_durably(temporary, encode_tensors(tensors, metadata={"step": str(checkpoint.step)}))
        temporary.replace(to)
        flush_directory(to.parent)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{to}: cannot be written: {error.strerror}") from error
    except OSError as error:
        raise Fault(f"{to}: could not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(tensors)


def write_keras(run: RunDirectory, checkpoint: Checkpoint, to: Path) -> int:
    """Build the job's model again and save it with the weights of the checkpoint.

    Returns:
        How many tensors the model has.
    """
    job = run.job()
    if job.get("framework") != "tensorflow":
        hint = "export it with: --to weights.safetensors"
        raise InputError(f"{run.path}: the model is not a Keras model", hint=hint)
    if not job.get("file"):
        hint = "export the weights with: --to weights.safetensors"
        raise InputError(
            f"{run.path}: the job came from a notebook, so its model cannot be built again", hint=hint
        )
    from leptonai.training.tensorflow.runtime import import_keras

    import_keras()
    from leptonai.launch.jobs import load_job
    from leptonai.training.tensorflow.build import build_model
    from leptonai.training.tensorflow.export import export_keras

    found = load_job(Path(job["file"]), tuple(job.get("overrides", ())))
    # The weights are kept in float32 whatever the arithmetic was.
    model = build_model(found, precision="float32")
    export_keras(checkpoint.state, model, to)
    return len(model.weights)
