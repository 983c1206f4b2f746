"""``ShardedEmbedding`` against ``torch.nn.EmbeddingBag``, in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.tables import wire
from leptonai.training.parameter_server.tables.gradients import answers
from leptonai.training.parameter_server.tables.link import RemoteTableLink, TableLink
from leptonai.training.parameter_server.tables.local import LocalTable
from leptonai.training.parameter_server.tables.memory import TableMemory, TableShape
from leptonai.training.parameter_server.tables.service import APPLIED, TableService
from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowSGD, Table
from leptonai.training.parameter_server.tables.storage import TableStorage
from leptonai.training.pytorch.embedding import (
    Mode,
    ShardedEmbedding,
    apply_local,
    bind_tables,
    push_tables,
    tables_of,
)


def table(**changes: object) -> Table:
    values: dict[str, object] = {"name": "t", "width": 8, "num_rows": 50, "rule": RowSGD(lr=0.5)}
    return Table(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_equals_embedding_bag_with_sgd(mode: Mode) -> None:
    ours = ShardedEmbedding(table(), mode=mode)
    weight = torch.from_numpy(ours.rows.pull(np.arange(50)))
    theirs = nn.EmbeddingBag(50, 8, mode=mode, _weight=weight.clone())
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        ids = torch.randint(0, 50, (16, 3), generator=generator)
        target = torch.randn(16, 8, generator=generator)
        optimizer.zero_grad()
        found, expected = ours(ids), theirs(ids)
        torch.testing.assert_close(found, expected)
        functional.mse_loss(found, target).backward()
        functional.mse_loss(expected, target).backward()
        apply_local(ours)
        optimizer.step()
    torch.testing.assert_close(torch.from_numpy(ours.rows.pull(np.arange(50))), theirs.weight.detach())


def test_shapes_and_no_parameters() -> None:
    rows = ShardedEmbedding(table())
    assert rows(torch.tensor([1, 2])).shape == (2, 8)
    assert rows(torch.tensor([[1, 2, 2]])).shape == (1, 3, 8)
    assert list(rows.parameters()) == []
    assert rows.state_dict() == {}


def test_two_passes_are_summed_in_one_update() -> None:
    model = ShardedEmbedding(table(init_scale=0.0))
    for ids in ([1, 2], [2, 3]):
        model(torch.tensor(ids)).sum().backward()
    assert [ids.tolist() for ids, _ in model.collect()] == [[1, 2], [2, 3]]
    for ids in ([1, 2], [2, 3]):
        model(torch.tensor(ids)).sum().backward()
    apply_local(model, lr_factor=0.5, scale=2.0)
    assert model.rows.pull([1, 2, 3])[:, 0].tolist() == [-0.5, -1.0, -0.5]


def test_evaluation_creates_no_rows() -> None:
    model = ShardedEmbedding(table())
    trained = model(torch.tensor([4])).detach()
    model.eval()
    with torch.inference_mode():
        assert torch.equal(model(torch.tensor([4])), trained)
        model(torch.tensor([5, 6]))
    assert isinstance(model.rows, LocalTable)
    assert model.rows.storage.num_rows == 1
    assert model.collect() == []


def test_trains_next_to_dense_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ShardedEmbedding(table(rule=RowAdagrad(lr=0.3)), mode="sum"), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ids = torch.arange(48).reshape(16, 3)
    target = (torch.arange(16) % 2).float()[:, None]
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(ids), target)
        loss.backward()
        optimizer.step()
        apply_local(model)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = ShardedEmbedding(table())
    before = model.rows.pull([1])
    (model(torch.tensor([1])) * float("nan")).sum().backward()
    with pytest.raises(Fault, match="not finite"):
        apply_local(model)
    np.testing.assert_array_equal(model.rows.pull([1]), before)


def test_bad_use() -> None:
    model = ShardedEmbedding(table())
    with pytest.raises(InputError, match="table 't': an id must be a whole number"):
        model(torch.tensor([1.0]))
    with pytest.raises(InputError, match="table 't': id 50 lies outside 0 to 49"):
        model(torch.tensor([1, 50]))
    with pytest.raises(InputError, match="dims"):
        model(torch.zeros((1, 1, 1), dtype=torch.int64))
    with pytest.raises(InputError, match="no link"):
        bind_tables(nn.Sequential(model), {})
    with pytest.raises(InputError, match="another"):
        model.bind(LocalTable(table(width=4)))
    assert tables_of(nn.Sequential(model)) == [model]


def test_pushing_to_a_server_equals_updating_in_this_process() -> None:
    spec = table(rule=RowAdagrad(lr=0.3))
    memory = TableMemory.create(TableShape(table=spec))
    service = TableService([TableStorage(memory)])

    def exchange(parts: wire.Buffers) -> memoryview:
        return memoryview(b"".join(service.handle_request(0, memoryview(b"".join(parts)))))

    # Two embeddings of one table, which push as one.
    served = nn.ModuleList([ShardedEmbedding(spec), ShardedEmbedding(spec, mode="sum")])
    alone = nn.ModuleList([ShardedEmbedding(spec), ShardedEmbedding(spec, mode="sum")])
    bind_tables(served, {"t": TableLink(spec, [RemoteTableLink(spec, 0, exchange)])})
    bind_tables(alone, {"t": LocalTable(spec)})
    for sequence in range(1, 4):
        for model in (served, alone):
            ids = torch.tensor([[1, 2, 2], [3, 1, sequence]])
            ((model[0](ids).sum(1) + model[1](ids) * 2.0) ** 2).sum().backward()
        grouped = sequence == 2
        pushed = push_tables(served, sequence=sequence, lr_factor=0.5, scale=0.5, grouped=grouped)
        if grouped:
            service.apply_group([(0, sequence, 0.5)], lr_factor=0.5)
        assert [each.verdict for each in answers(pushed, sequence)] == [APPLIED]
        apply_local(alone, lr_factor=0.5, scale=0.5)
    found = tables_of(served)[0].rows.pull(np.arange(50))
    np.testing.assert_array_equal(found, tables_of(alone)[0].rows.pull(np.arange(50)))
    memory.close()
