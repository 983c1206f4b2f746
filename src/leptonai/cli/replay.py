"""``lepton replay``: a recorded run once more, to the same bits."""

from __future__ import annotations

import dataclasses

from leptonai.cli.find_run import RunArgument, find_run
from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import err, facts, out, print_json
from leptonai.core.errors import Fault
from leptonai.core.units import format_seconds

EXAMPLES = """
[bold]Examples[/bold]

  lepton train job.py -c cluster.yaml --set parameter_server.record=true

  lepton replay last
"""


def replay(run: RunArgument, as_json: JsonOption = False, home: HomeOption = DEFAULT_HOME) -> None:
    """Run a recorded run's interleaving again in one process; its final parameters must come out bit for bit."""
    from leptonai.launch.engine import start_engine
    from leptonai.launch.replaying import replay_run

    found = find_run(run, home_directory(home))
    with err().status("replaying"), start_engine() as engine:
        result = replay_run(found.path, engine, home=home_directory(home))
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        words = {True: "equal to the run's, bit for bit", False: "NOT those of the run", None: "reached"}
        out().print(
            facts(
                {
                    "updates": f"{result.updates:,}, in {format_seconds(result.seconds)}",
                    "final parameters": words[result.same],
                    **{f"shard {number}": digest[:32] for number, digest in enumerate(result.digests)},
                }
            )
        )
    if result.same is False:
        raise Fault(
            "the replay ended elsewhere than the run", hint="is this the machine and environment of the run?"
        )
