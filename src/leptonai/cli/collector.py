"""``lepton collector``: takes in what nodes and runs say, watches it, and tells people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.cli.options import DEFAULT_HOME, HomeOption, home_directory
from leptonai.cli.output import err, say
from leptonai.cli.privacy import WorkspaceOption
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.operations.collector.collecting import CollectorSettings
    from leptonai.operations.ingest.scrape_target import Target

EXAMPLES = """
[bold]Examples[/bold]

  lepton collector

  lepton collector --ops-file ops.yaml --peers 'gpu-[0-9]+'

  lepton collector --scrape disks=http://127.0.0.1:9100/metrics

  lepton collector --listen 0.0.0.0:9095 --read-token-file read --write-token-file write

[dim]Agents and Prometheus write to http://HOST:PORT/api/v1/write, Grafana reads http://HOST:PORT as a Prometheus.
It runs until Ctrl-C or SIGTERM.[/dim]
"""
STORE_FOLDER = "metrics"


def collector(
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where it answers.")
    ] = "127.0.0.1:9095",
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="Where samples are kept. Default: in the home."),
    ] = None,
    read_token_file: Annotated[
        Path | None, typer.Option("--read-token-file", metavar="FILE", help="The token that readers need.")
    ] = None,
    write_token_file: Annotated[
        Path | None, typer.Option("--write-token-file", metavar="FILE", help="The token that writers need.")
    ] = None,
    ops_file: Annotated[
        Path | None, typer.Option("--ops-file", metavar="FILE", help="ops.yaml: whom to tell of incidents.")
    ] = None,
    faults_file: Annotated[
        Path | None,
        typer.Option("--faults-file", metavar="FILE", help="Your own faults, over those shipped."),
    ] = None,
    peers: Annotated[
        str,
        typer.Option("--peers", metavar="REGEX", help="Names of nodes that do the same work: compare them."),
    ] = "",
    scrape: Annotated[
        list[str],
        typer.Option("--scrape", metavar="[JOB=]URL", help="A page of metrics to scrape; may be repeated."),
    ] = [],  # noqa: B006
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
) -> None:
    """Collect: keep samples of nodes and runs, watch them, group alarms into incidents, tell people."""
    from leptonai.cli.ops import open_workspace
    from leptonai.operations.agent.process import StopSignals
    from leptonai.operations.collector.collecting import run_collector

    settings = _settings(
        listen, store or home_directory(home) / STORE_FOLDER, read_token_file, write_token_file, ops_file,
        faults_file, peers, scrape,
    )  # fmt: skip

    def listening(url: str) -> None:
        say(err(), f"collector on {url}, samples in {settings.store}, until Ctrl-C")

    with open_workspace(home, workspace) as opened, StopSignals() as stop:
        run_collector(
            settings, opened, wait=stop.wait, say=lambda words: say(err(), words), on_listening=listening
        )


def _settings(
    listen: str,
    store: Path,
    read_token_file: Path | None,
    write_token_file: Path | None,
    ops_file: Path | None,
    faults_file: Path | None,
    peers: str,
    scrape: list[str],
) -> CollectorSettings:
    from leptonai.operations.agent.collector import read_token
    from leptonai.operations.collector.collecting import CollectorSettings
    from leptonai.operations.faults.catalogue import read_site, shipped
    from leptonai.operations.incidents.channels import OpsSettings, read_ops_file
    from leptonai.operations.ingest.access import Access

    host, port = address(listen)
    catalogue = shipped()
    if faults_file is not None:
        catalogue = read_site(faults_file, catalogue)
    return CollectorSettings(
        store=store, host=host, port=port, catalogue=catalogue, peers=peers,
        targets=tuple(target(each) for each in scrape),
        ops=OpsSettings() if ops_file is None else read_ops_file(ops_file),
        access=Access(
            read_token=None if read_token_file is None else read_token(read_token_file),
            write_token=None if write_token_file is None else read_token(write_token_file),
        ),
    )  # fmt: skip


def target(words: str) -> Target:
    """A page to scrape, with its job.

    Raises:
        InputError: the address cannot be used.

    >>> target("http://127.0.0.1:9100/metrics").job, target("disks=http://127.0.0.1:9100/metrics?a=b").job
    ('scrape', 'disks')
    """
    from leptonai.operations.ingest.scrape_target import Target

    job, equals, url = words.partition("=")
    if not equals or ":" in job or "/" in job:
        job, url = "scrape", words
    return Target(url=url, job=job)


def address(words: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        InputError: it is not HOST:PORT.

    >>> address("127.0.0.1:9095"), address("[::1]:80")
    (('127.0.0.1', 9095), ('::1', 80))
    """
    host, _, port = words.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise InputError(f"expected HOST:PORT, found {words!r}", hint="such as 127.0.0.1:9095")
    return host.strip("[]"), int(port)
