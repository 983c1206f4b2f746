"""The reference of all commands, made from the application itself: ``python -m leptonai.cli.reference``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from leptonai.cli.app import build_command

_HEAD = """\
# Commands

Made by `python -m leptonai.cli.reference`; do not edit by hand.

Every command prints its result on standard output and everything else on standard error. Those that report take
`--json`; an error is then one JSON object, `{"error": {"kind", "exit_code", "message", "hint", "detail"}}`.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | the input is wrong: fix the file or the words |
| 3 | refused by a policy, key or budget |
| 4 | the world broke: a process, disk or network; it may be tried again |
| 70 | a bug of ours |
| 130 | interrupted with Ctrl-C |

`lepton --install-completion` teaches the shell to complete commands and options.
"""


def reference() -> str:
    """The page as Markdown."""
    parts = [_HEAD, *(_section(names, command) for names, command in commands(build_command(), ("lepton",)))]
    return "\n".join(parts)


def commands(command: Any, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its full name, in the order of the help."""
    below = getattr(command, "commands", None)
    if not below:
        yield names, command
        return
    for name, each in below.items():
        yield from commands(each, (*names, name))


def _section(names: tuple[str, ...], command: Any) -> str:
    title = " ".join(names)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    usage = " ".join([title, *(_metavar(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"## {title}", "", command.help.strip(), "", "```", usage, "```", ""]
    if arguments or options:
        lines += ["| word | meaning |", "|---|---|"]
        lines += [f"| `{_metavar(each)}` | {_plain(each.help)} |" for each in arguments]
        lines += [f"| `{_option(each)}` | {_meaning(each)} |" for each in options]
        lines.append("")
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  lepton")]
    if examples:
        lines += ["```sh", *examples, "```", ""]
    return "\n".join(lines)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    names = ", ".join(parameter.opts)
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'N'}"


def _meaning(parameter: Any) -> str:
    text = _plain(parameter.help)
    if parameter.required:
        return f"{text} Required."
    if parameter.show_default is not False and parameter.default not in (None, False):
        text += f" Default: `{parameter.default}`."
    return f"{text} Environment: `{parameter.envvar}`." if parameter.envvar else text


def _plain(text: str | None) -> str:
    """Help without the markup for terminals."""
    return re.sub(r"\[/?(bold|dim)\]", "", text or "")


if __name__ == "__main__":
    sys.stdout.write(reference())
