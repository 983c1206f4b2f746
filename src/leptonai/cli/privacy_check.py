"""The words of ``lepton privacy audit``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from leptonai.cli.find_run import RunArgument, find_run
from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.privacy_audit import audit

EXAMPLES = """
[bold]Examples[/bold]

  lepton privacy audit last

  lepton privacy audit last --steps 200 --shadow-models 8 --input-canaries 100

[dim]The audit trains again, on the run's own data and code, and releases nothing of that.[/dim]
"""


def audit_run(
    run: RunArgument,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            help="Steps of each training of the audit; fewer find less. Default: as many as the run took.",
            show_default=False,
        ),
    ] = None,
    canaries: Annotated[
        int, typer.Option("--canaries", metavar="N", help="Made-up gradients that are put in or left out.")
    ] = 1000,
    input_canaries: Annotated[
        int, typer.Option("--input-canaries", metavar="N", help="Wrongly labelled examples likewise.")
    ] = 0,
    membership: Annotated[
        int, typer.Option("--membership", metavar="N", help="Units whose membership is guessed; 0: none.")
    ] = 500,
    shadow_models: Annotated[
        int, typer.Option("--shadow-models", metavar="N", help="Trainings for LiRA; 0 leaves it out.")
    ] = 0,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Attack and measure a private run, and hold what is found against its statement."""
    from leptonai.launch.private_audit import open_trainer
    from leptonai.security.privacy.proof.audit import Effort

    directory = home_directory(home)
    os.environ["LEPTON_HOME"] = str(directory)  # the job file looks for its data there
    effort = Effort(
        num_canaries=canaries, num_input_canaries=input_canaries, num_steps=steps,
        membership_units=membership, shadow_models=shadow_models,
    )  # fmt: skip
    audit(find_run(run, directory).path, open_trainer=open_trainer, effort=effort, as_json=as_json)
