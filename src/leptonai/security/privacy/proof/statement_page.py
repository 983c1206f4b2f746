"""The statement as a page for people: plain HTML, no scripts, nothing loaded from elsewhere, all text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from leptonai.security.privacy.accounting.mechanisms import charge_to_json
from leptonai.security.privacy.proof.statement import STATEMENT_FILE, Facts, Statement

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:46em;margin:2em auto;padding:0 1em;color:#1a1a1a}"
    "table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.2em 1.2em .2em 0}"
    "th{font-weight:600;white-space:nowrap}td{overflow-wrap:anywhere}.claim{font-size:1.3em}"
)
_RELATIONS = {
    "add_or_remove_one": "data sets that differ in one {unit}, which one has and the other lacks",
}


def page(made: Statement) -> str:
    """The whole page, ASCII but for what names hold."""
    facts = made.facts
    relation = _RELATIONS.get(facts.neighbours, facts.neighbours).format(unit=facts.unit)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Privacy of run {escape(facts.run_id)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Privacy of run {escape(facts.run_id)}</h1>",
        f'<p class="claim">epsilon {facts.epsilon:.4g} at delta {facts.delta:.3g}</p>',
        f"<p>{escape(_meaning(facts))}</p>",
        _table({"neighbours": relation, **_facts(facts)}),
        "<h2>What is covered</h2>",
        _list(made.covered),
        "<h2>What is not covered</h2>",
        _list(made.not_covered),
        "<h2>What was charged</h2>",
        _list(_charge(charge_to_json(charge)) for charge in made.charges),
        "<h2>Made with</h2>",
        _table(made.versions),
        f"<p>The same for programs: {STATEMENT_FILE}. Hold the run to it: <code>lepton privacy audit RUN</code>.</p>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _meaning(facts: Facts) -> str:
    times = f"{2.718281828 ** min(facts.epsilon, 50):.3g}"
    return (
        f"Whatever this run can release is at most e^epsilon = {times} times likelier with one {facts.unit} in the "
        f"data than without, except with probability {facts.delta:.3g}."
    )


def _facts(facts: Facts) -> dict[str, str]:
    unit = (
        facts.unit if facts.unit == "example" else f"user, at most {facts.examples_per_user} examples a step"
    )
    if facts.correlation == "banded":
        sampling = "fixed order, each unit once an epoch"
    else:
        sampling = f"Poisson, each unit with probability {facts.sample_rate:.6g} in each step"
        sampling += f", at most {facts.max_batch:,} units" if facts.max_batch is not None else ""
    noise = f"{facts.noise_multiplier:.6g} times the sensitivity"
    noise += f", correlated over {facts.bands} steps" if facts.correlation == "banded" else ""
    noise += ", integers of a discrete Gaussian" if facts.precision == "exact" else ", float32 normals"
    given = "given as public" if facts.population_given else "counted in the data"
    return {
        "unit of privacy": unit,
        "units": f"{facts.num_units:,}, {given}",
        "sampling": sampling,
        "clipping": f"{facts.clipping}, to L2 norm {facts.clip:g}",
        "noise": noise,
        "sums divided by": f"{facts.normaliser:g}, whatever the batch",
        "steps": f"{facts.steps_released:,} paid for, of {facts.steps_planned:,}",
        "accounting": facts.accounting,
        "data, by content": facts.dataset_digest,
        "ledger": f"{facts.ledger_id or 'none'}, tenant {facts.tenant}, block {facts.block}",
        "written": facts.written_at,
    }


def _charge(words: Mapping[str, object]) -> str:
    rest = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in words.items()
        if name not in ("mechanism", "count")
    )
    return f"{words['count']} x {words['mechanism']}: {rest}"


def _table(rows: Mapping[str, str]) -> str:
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return "<table>" + "".join(cells) + "</table>"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
