"""Memory against published figures (tests/golden/planner_memory.json), hand-worked cases, and monotony."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.prediction import memory
from leptonai.compute.prediction.layouts import Layout, Layouts
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "planner_memory.json").read_text()
)
NAMES = tuple(GOLDEN["models"])
WAYS = {  # as figure 7 names them: recomputation and whether normalisations are divided
    "alone": ("none", False),
    "sequence": ("none", True),
    "selective": ("selective", False),
    "both": ("selective", True),
    "full": ("full", False),
}
GIBIBYTE = 2**30


def _model(name: str) -> Transformer:
    sizes = GOLDEN["models"][name]
    return Transformer(
        **{key: sizes[key] for key in ("num_layers", "hidden", "num_heads", "sequence", "vocabulary")}
    )


def _layout(name: str, way: str) -> Layout:
    sizes = GOLDEN["models"][name]
    recompute, sequence_parallel = WAYS[way]
    return Layout(
        tensor=sizes["tensor"], pipeline=sizes["pipeline"], interleave=sizes["interleave"],
        micro_batch=sizes["micro_batch"], recompute=recompute, sequence_parallel=sequence_parallel,
    )  # fmt: skip


def _layer_bytes(name: str, way: str) -> float:
    row = Layouts.of([_layout(name, way)])
    return float(
        memory.layer_activation_bytes(
            _model(name), micro_batch=row.micro_batch, tensor=row.tensor,
            sequence_parallel=row.sequence_parallel, recompute=row.recompute,
        )[0]
    )  # fmt: skip


def _use(model: Transformer, layout: Layout, global_batch: int, **options: Any) -> memory.MemoryUse:
    return memory.transformer_memory(model, Layouts.of([layout]), global_batch=global_batch, **options)


@pytest.mark.parametrize("name", NAMES)
def test_activations_by_technique_are_the_published_shares(name: str) -> None:
    golden = GOLDEN["activation_percent"]
    for way, percent in golden[name].items():
        found = 100 * _layer_bytes(name, way) / _layer_bytes(name, "alone")
        assert found == pytest.approx(percent, rel=golden["tolerance"]), way


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["alone", "both"])
def test_device_memory_is_the_published_one(name: str, way: str) -> None:
    golden, sizes, model = GOLDEN["device_gibibytes"], GOLDEN["models"][name], _model(name)
    chunks = memory.chunks_in_flight(
        sizes["pipeline"], sizes["interleave"], sizes["global_batch"] / sizes["micro_batch"]
    )
    layers = model.num_layers / sizes["pipeline"]
    activations = float(chunks) / sizes["interleave"] * layers * _layer_bytes(name, way)
    assert activations / GIBIBYTE == pytest.approx(golden[name][way], rel=golden["tolerance"])

    count = layers * model.layer_parameters / sizes["tensor"]
    states = sum(memory.state_bytes(count, states=memory.MIXED_ADAM_FLOAT32_GRADIENTS))
    assert float(states) / GIBIBYTE == pytest.approx(golden[name]["states"], rel=golden["tolerance"])


@pytest.mark.parametrize("name", NAMES)
def test_what_ran_fits_and_what_did_not_does_not(name: str) -> None:
    fits = {}
    for way in ("alone", "both"):
        use = _use(
            _model(name), _layout(name, way), GOLDEN["models"][name]["global_batch"],
            states=memory.MIXED_ADAM_FLOAT32_GRADIENTS,
        )  # fmt: skip
        published = GOLDEN["device_gibibytes"][name]
        # What the figure leaves out, embeddings, logits and buffers, adds at most an eighth.
        assert 1 <= float(use.activations[0]) / GIBIBYTE / published[way] < 1.125
        fits[way] = float(use.total[0]) < 80 * GIBIBYTE
    assert fits == {"alone": False, "both": True}


@pytest.mark.parametrize("name", ["175B", "530B"])
def test_scores_and_what_dropping_them_saves(name: str) -> None:
    golden, model = GOLDEN["score_bytes_per_activation"], _model(name)
    whole, without = (
        float(memory.layer_activation_bytes(model, micro_batch=1, recompute=level)) for level in (0, 1)
    )
    stream = model.sequence * model.hidden
    assert (whole - without) / stream == pytest.approx(golden[name]["scores"])
    assert without / stream == pytest.approx(34)
    assert 1 - without / whole == pytest.approx(golden[name]["saved"], rel=golden["tolerance"])


@pytest.mark.parametrize("count", ["7.5e9", "128e9", "1e12"])
def test_states_are_those_of_zero(count: str) -> None:
    golden = GOLDEN["states_gigabytes"]
    for devices, expected in golden[count].items():
        level = np.array([1, 2, 3])
        found = sum(memory.state_bytes(float(count), zero=level, fsdp=int(devices)))
        # Zero 3 of 7.5e9 parameters is 0.117 GB on 1,024 devices, printed as 0.12.
        assert found / 1e9 == pytest.approx(np.array(expected), rel=golden["tolerance"])


@pytest.mark.parametrize(
    ("states", "total"),
    [
        (memory.MIXED_ADAM, 16),
        (memory.MIXED_ADAM_FLOAT32_GRADIENTS, 18),
        (memory.FLOAT32_ADAM, 16),
        (memory.FLOAT32_MOMENTUM, 12),
        (memory.FLOAT32_SGD, 8),
    ],
)
def test_bytes_a_parameter(states: memory.States, total: float) -> None:
    assert float(sum(memory.state_bytes(1.0, states=states))) == total


@pytest.mark.parametrize(
    ("pipeline", "interleave", "micro_batches", "chunks"),
    [(1, 1, 8, 1), (4, 1, 8, 4), (4, 1, 2, 2), (8, 3, 64, 31), (4, 2, 4, 8), (2, 4, 2, 8), (2, 4, 4, 9)],
)
def test_chunks_in_flight_by_hand(pipeline: int, interleave: int, micro_batches: int, chunks: int) -> None:
    assert float(memory.chunks_in_flight(pipeline, interleave, micro_batches)) == chunks


TINY = Transformer(num_layers=4, hidden=8, num_heads=2, sequence=16, vocabulary=32)


def test_every_part_by_hand() -> None:
    # A layer: 12*64 + 13*8 = 872 parameters, 48 of them on every device; embeddings 32*8 and 16*8; normalisation 16.
    # Two tensor devices, one stage, two examples: 4*((872-48)/2 + 48) + 32*8/2 + 16*8 + 16 = 2112 parameters.
    use = _use(TINY, Layout(tensor=2, micro_batch=2), 4, context_bytes=100.0, fragmentation_share=0.1)
    assert float(use.parameters[0]) == 2 * 2112
    assert float(use.gradients[0]) == 2 * 2112
    assert float(use.optimizer[0]) == 12 * 2112
    # sbh = 16*2*8 = 256; a layer 256*(10 + 24/2) + 5*2*16^2*2/2 = 8192; the embedding's mask 256; 4*256 before and
    # after the last normalisation; logits 16*2*32/2 = 512 of 4 bytes, and 6 more each for the loss.
    assert float(use.activations[0]) == 4 * 8192 + 256 + 4 * 256 + 4 * 512
    assert float(use.working[0]) == 6 * 512
    assert float(use.buffers[0]) == 0
    in_use = 16 * 2112 + 36096 + 3072
    assert float(use.overhead[0]) == pytest.approx(100 + 0.1 * in_use)
    assert float(use.total[0]) == pytest.approx(100 + 1.1 * in_use)


def test_buffers_of_zero_3_by_hand() -> None:
    layout = Layout(data=4, fsdp=4, zero=3, recompute="full")
    use = _use(TINY, layout, 4, context_bytes=0.0, fragmentation_share=0.0)
    count = TINY.num_parameters
    assert count == 4 * 872 + 48 * 8 + 16
    assert [float(each[0]) for each in (use.parameters, use.gradients, use.optimizer)] == [
        2 * count / 4, 2 * count / 4, 12 * count / 4,
    ]  # fmt: skip
    # Two whole layers and the token embedding in half precision; one layer's gradients.
    assert float(use.buffers[0]) == 2 * (2 * 872 + 256) + 2 * 872
    # One layer again: sbh*34 + 5as^2 = 128*34 + 5*2*256, more than six bytes for each of 16*32 logits.
    assert float(use.working[0]) == 128 * 34 + 2560


def test_pipeline_messages_by_hand() -> None:
    # In and out, 2 bytes each, of 16*8 activations.
    use = _use(TINY, Layout(pipeline=2), 4)
    assert float(use.buffers[0]) == 2 * 2 * 128


def test_last_stage_counts_when_its_logits_are_large() -> None:
    wide = replace(TINY, vocabulary=100_000)
    layouts = Layouts.of([Layout(pipeline=2, recompute="full", micro_batch=2)])
    use = memory.transformer_memory(wide, layouts, global_batch=8)
    assert float(use.activations[0]) > 4 * 2 * 16 * 100_000
    assert float(use.parameters[0]) == 2 * float(memory.stage_parameters(wide, layouts, last=True)[0])


def test_one_device_holds_every_parameter() -> None:
    assert float(memory.stage_parameters(TINY, Layouts.of([Layout()]))[0]) == TINY.num_parameters


def test_uneven_stages_count_the_fullest() -> None:
    layouts = Layouts.of(
        [Layout(pipeline=3), Layout(pipeline=2, interleave=2), Layout(pipeline=2, interleave=3)]
    )
    assert memory.stage_layers(TINY, layouts).tolist() == [2, 2, 3]


@pytest.mark.parametrize("batch", [0, -1])
def test_bad_batch_is_refused(batch: int) -> None:
    with pytest.raises(InputError):
        memory.transformer_memory(TINY, Layouts.of([Layout()]), global_batch=batch)


def test_bad_states_are_refused() -> None:
    with pytest.raises(InputError):
        memory.States(parameter_bytes=0, gradient_bytes=2, optimizer_bytes=12)


POWERS = st.sampled_from([1, 2, 4, 8])


@st.composite
def layouts_of(draw: st.DrawFn) -> Layout:
    fsdp, pipeline = draw(POWERS), draw(st.sampled_from([1, 2, 4]))
    return Layout(
        tensor=draw(POWERS),
        data=fsdp * draw(POWERS),
        pipeline=pipeline,
        fsdp=fsdp,
        zero=draw(st.integers(1, 3)) if fsdp > 1 else 0,
        micro_batch=draw(POWERS),
        interleave=draw(st.sampled_from([1, 2])) if pipeline > 1 else 1,
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        sequence_parallel=draw(st.booleans()),
    )


MODELS = st.builds(
    lambda layers, heads, width, sequence: Transformer(
        num_layers=8 * layers, hidden=64 * heads * width, num_heads=8 * heads, sequence=sequence, vocabulary=50_000
    ),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([128, 1024]),
)  # fmt: skip


def _total(model: Transformer, layout: Layout, examples_each: int = 8) -> float:
    layouts = Layouts.of([layout])
    batch = layout.data * layout.micro_batch * examples_each
    return float(memory.transformer_memory(model, layouts, global_batch=batch).total[0])


@given(model=MODELS, layout=layouts_of())
def test_more_devices_never_need_more_memory_each(model: Transformer, layout: Layout) -> None:
    base = _total(model, layout)
    assert _total(model, replace(layout, tensor=2 * layout.tensor)) <= base
    assert _total(model, replace(layout, data=2 * layout.data)) <= base
    if layout.fsdp > 1:
        assert _total(model, replace(layout, data=2 * layout.data, fsdp=2 * layout.fsdp)) <= base


@given(model=MODELS, layout=layouts_of())
def test_more_stages_never_need_more_states_each(model: Transformer, layout: Layout) -> None:
    # Activations of an interleaved first stage and messages may grow with stages: 1 + (p-1)/(pv).
    few, many = (
        memory.transformer_memory(
            model, Layouts.of([replace(layout, pipeline=stages, interleave=1)]), global_batch=10**6
        )
        for stages in (1, 4)
    )
    for part in ("parameters", "gradients", "optimizer"):
        assert float(getattr(many, part)[0]) <= float(getattr(few, part)[0])


@given(model=MODELS, layout=layouts_of())
def test_monotony_in_what_is_asked(model: Transformer, layout: Layout) -> None:
    base = _total(model, layout)
    assert _total(model, replace(layout, micro_batch=2 * layout.micro_batch)) >= base
    assert _total(replace(model, num_layers=model.num_layers + 8), layout) >= base
    assert _total(model, layout, examples_each=16) >= base
    kept = [
        float(_use(model, replace(layout, recompute=way), 512).activations[0])
        for way in ("full", "selective", "none")
    ]
    assert kept == sorted(kept)


@given(rows=st.lists(layouts_of(), min_size=1, max_size=6))
def test_columns_are_rows(rows: list[Layout]) -> None:
    together = memory.transformer_memory(TINY, Layouts.of(rows), global_batch=64).total
    alone = [
        float(memory.transformer_memory(TINY, Layouts.of([row]), global_batch=64).total[0]) for row in rows
    ]
    assert together.tolist() == alone
