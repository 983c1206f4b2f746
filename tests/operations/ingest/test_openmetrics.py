"""Text formats: what is written is read back; what is broken is refused with its line."""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.operations.ingest.exposition import Family, Point, family, write_openmetrics, write_text
from leptonai.operations.ingest.openmetrics import parse

FAMILIES = [
    family("jobs", "counter", 'Jobs "done",\na \\ total.', ({"node": 'a"\\\n'}, 3.0), ({}, 1e300)),
    family("queue_bytes", "gauge", "Waiting.", ({}, math.inf), ({"q": "é"}, -0.5), unit="bytes"),
    Family(
        name="wait_seconds", kind="histogram", help="Waits.", unit="seconds",
        points=(
            Point("wait_seconds_bucket", (("le", "1.0"),), 2.0, 1500),
            Point("wait_seconds_bucket", (("le", "+Inf"),), 3.0, 1500),
            Point("wait_seconds_count", (), 3.0, 1500), Point("wait_seconds_sum", (), 4.5, 1500),
        ),
    ),
    Family(name="rpc", kind="summary", help="Calls.", points=(
        Point("rpc", (("quantile", "0.5"),), 1.0), Point("rpc_count", (), 2.0), Point("rpc_sum", (), 2.0))),
    Family(name="build", kind="info", help="Version.", points=(Point("build_info", (("version", "1"),), 1.0),)),
    Family(name="state", kind="stateset", help="State.", points=(
        Point("state", (("state", "up"),), 1.0), Point("state", (("state", "down"),), 0.0))),
]  # fmt: skip


def test_openmetrics_written_is_read_back() -> None:
    assert parse(write_openmetrics(FAMILIES), openmetrics=True) == FAMILIES


def test_text_written_is_read_back() -> None:
    found = parse(write_text(FAMILIES), openmetrics=False)
    assert [each.points for each in found] == [each.points for each in FAMILIES]
    assert [each.kind for each in found][:3] == ["counter", "gauge", "histogram"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    page = write_text([each for each in FAMILIES if each.kind not in ("info", "stateset")])
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page.encode(), capture_output=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    page = write_openmetrics([family("queue_bytes", "gauge", "Waiting.", ({}, 1.0), unit="bytes")])
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page.encode(), capture_output=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_exemplars_and_odd_spacing_are_read() -> None:
    page = '# TYPE a histogram\na_bucket{le="+Inf"} 1 2.5 # {trace="x"} 0.5 1.0\n# EOF\n'
    assert parse(page, openmetrics=True)[0].points == (Point("a_bucket", (("le", "+Inf"),), 1.0, 2500),)
    assert parse('a { b = "c" , } 1 7\r\n\n#nothing\n# a b\n', openmetrics=False)[0].points == (
        Point("a", (("b", "c"),), 1.0, 7),
    )


@pytest.mark.parametrize(
    "page",
    ["a", "a ", "a{b=c} 1", 'a{b="c} 1', 'a{b="c",b="d"} 1', "a 1 2 3", "a x", "a 1_0", "a 1 nan", "{} 1", "0a 1",
     "# TYPE a counter\n# TYPE a gauge", "# TYPE a what", "a 1\n# TYPE a gauge", 'a{__name__="b"} 1', "a1.5"],
)  # fmt: skip
def test_a_broken_line_is_named(page: str) -> None:
    with pytest.raises(InputError, match=r"^line \d"):
        parse(page, openmetrics=False)


def test_a_page_that_was_cut_off_is_refused() -> None:
    with pytest.raises(InputError, match="cut off"):
        parse("a 1\n", openmetrics=True)
    with pytest.raises(InputError, match="after # EOF"):
        parse("# EOF\na 1\n", openmetrics=True)


@given(st.text(max_size=80), st.text(alphabet='ab{}="\\,# \n\t10.eTYPHLUNIOF_', max_size=60), st.booleans())
def test_any_text_is_read_or_refused(one: str, two: str, openmetrics: bool) -> None:
    for page in (one, two, f"# TYPE a counter\na_total{two}\n# EOF\n"):
        with contextlib.suppress(InputError):
            parse(page, openmetrics=openmetrics)
