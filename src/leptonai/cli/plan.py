"""``lepton plan``: what would run and what one step should cost, without training."""

from __future__ import annotations

from leptonai.cli.options import (
    DEFAULT_HOME,
    ClusterOption,
    HomeOption,
    JobArgument,
    JsonOption,
    SetOption,
)
from leptonai.cli.output import out, print_json
from leptonai.cli.train import engine_for, request_for

EXAMPLES = """
[bold]Examples[/bold]

  lepton plan job.py --cluster cluster.yaml

  lepton plan job.py -c cluster.yaml --set global_batch_size=512 --json
"""


def plan(
    job: JobArgument,
    cluster: ClusterOption,
    settings: SetOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what would run where, and the estimate for one step: T_total = T_transfer + T_compute."""
    from leptonai.cli.plan_view import print_plan
    from leptonai.launch.run import make_plan

    with engine_for(job, home) as engine:
        made = make_plan(request_for(job, cluster, settings=settings, home=home), engine=engine)
    if as_json:
        print_json(made.to_json())
    else:
        print_plan(made, out())
