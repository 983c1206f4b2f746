"""``lepton data``: get public data sets, checked against known digests."""

from __future__ import annotations

import typer

app = typer.Typer(help="List and get data sets.", no_args_is_help=True, rich_markup_mode="rich")
