"""Finding entries, and files of one's own over those that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leptonai.compute.hardware.catalogue import catalogue_files, find, load_catalogue
from leptonai.compute.hardware.entries import AcceleratorEntry, Instance
from leptonai.core.errors import InputError

OWN = """
accelerators:
  - name: wonder-1
    kind: gpu
    aliases: [wonder]
    peak: {bf16: 500TFLOP/s}
    memory: 96GiB
    memory_bandwidth: {value: 3TB/s, note: measured by us}
instances:
  - {name: our-box, cloud: cellar, accelerator: wonder, count: 4, price: 2, network: 100Gb/s}
"""


def written(folder: Path, text: str, name: str = "ours.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_names_and_aliases_are_found_however_they_are_written() -> None:
    assert find("A100").name == find("a100 80gb").name == find(" a100-sxm-80gb ").name == "a100-sxm-80gb"
    found = load_catalogue()
    assert isinstance(found.find("P5.48xlarge"), Instance)
    assert isinstance(found.find("h100"), AcceleratorEntry)


@pytest.mark.parametrize(
    ("name", "offered"),
    [("h10", "h100"), ("A200", "b200"), ("tpu-v5", "tpu-v5p"), ("a100-sxm-60gb", "a100-sxm")],
)
def test_an_unknown_name_is_told_the_nearest(name: str, offered: str) -> None:
    with pytest.raises(InputError, match="is not in the catalogue") as caught:
        find(name)
    assert "did you mean" in str(caught.value.hint)
    assert offered in str(caught.value.hint)


def test_an_unknown_instance_is_told_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        load_catalogue().instance("p5.24xlarge")
    assert "p5.48xlarge" in str(caught.value.hint)
    with pytest.raises(InputError, match=r"hardware 'p5\.24xlarge'"):
        load_catalogue().find("p5.24xlarge")


def test_a_person_s_file_adds_entries_whose_source_is_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, OWN)
    found = load_catalogue((path,))
    entry = found.accelerator("wonder")
    assert entry.peak("bf16").value == 5e14  # type: ignore[union-attr]
    assert entry.memory_bandwidth_bytes_per_second.note == "measured by us"
    assert entry.memory_bytes.source.title == str(path)
    assert found.instance("our-box").accelerator is entry
    assert found.instance("our-box").price(spot=False) == 2.0
    assert found.accelerator("h100") is find("h100")
    with pytest.raises(InputError):
        find("wonder")


def test_json_is_read_as_well(tmp_path: Path) -> None:
    row = {
        "name": "j",
        "kind": "cpu",
        "peak": {"fp32": "1TFLOP/s"},
        "memory": "8GB",
        "memory_bandwidth": "50GB/s",
    }
    path = written(tmp_path, json.dumps({"accelerators": [row]}), "ours.json")
    assert load_catalogue((path,)).accelerator("j").kind == "cpu"


def test_a_known_name_is_replaced_and_instances_follow(tmp_path: Path) -> None:
    text = OWN.split("instances:")[0].replace("wonder-1", "H100-SXM-80GB").replace("[wonder]", "[h100]")
    found = load_catalogue((written(tmp_path, text),))
    assert found.accelerator("h100").peak("bf16").value == 5e14  # type: ignore[union-attr]
    assert found.instance("p5.48xlarge").accelerator is found.accelerator("h100-sxm-80gb")
    assert load_catalogue().instance("p5.48xlarge").accelerator is find("h100")


def test_later_files_win(tmp_path: Path) -> None:
    first = written(tmp_path, OWN, "a.yaml")
    second = written(tmp_path, OWN.replace("96GiB", "48GiB"), "b.yaml")
    assert load_catalogue((first, second)).accelerator("wonder").memory_bytes.value == 48 * 2**30


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ("500TFLOP/s", "-5TFLOP/s", r"ours.yaml:6: accelerators\[0\].peak.bf16.value: '-5TFLOP/s' is not"),
        ("500TFLOP/s", "0TFLOP/s", r"ours.yaml:6: accelerators\[0\].peak.bf16.value: expected more than 0"),
        ("    memory: 96GiB\n", "", r"ours.yaml:3: key 'memory' is missing in accelerators\[0\]"),
        ("96GiB", "96", r"accelerators\[0\].memory.value: 96 has no unit"),
        ("bf16: ", "bf17: ", r"bf17"),
        ("price: 2", "price: -2", r"ours.yaml:10: instances\[0\].price.value: expected at least 0"),
        ("count: 4", "count: 0", r"instances\[0\].count: expected at least 1"),
        ("accelerator: wonder,", "accelerator: wander,", r"instances\[0\].accelerator: accelerator 'wander' is not"),
        ("note: measured by us", "source: sheet", r"ours.yaml:8: unknown source 'sheet'"),
        ("kind: gpu", "kind: gpus", r"unknown value 'gpus'"),
        ("    kind: gpu", "    kind: gpu\n    power: 400", r"400 is no power"),
        ("100Gb/s}", "100Gb/s}\n  - {name: our-box, cloud: c, accelerator: t4, count: 1}", r"'our-box' is used twice"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_where_and_what(tmp_path: Path, good: str, bad: str, told: str) -> None:
    assert good in OWN
    with pytest.raises(InputError, match=told):
        load_catalogue((written(tmp_path, OWN.replace(good, bad)),))


def test_the_home_s_folder_is_read_by_name(tmp_path: Path) -> None:
    assert catalogue_files(tmp_path) == ()
    folder = tmp_path / "hardware"
    folder.mkdir()
    paths = [written(folder, OWN, name) for name in ("b.json", "a.yaml", "notes.txt")]
    assert catalogue_files(tmp_path) == (paths[1], paths[0])
