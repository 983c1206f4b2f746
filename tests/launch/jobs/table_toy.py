"""The toy with sparse tables: words by id, and their lengths, under a small dense layer."""

import numpy as np
import torch
from served_toy import served
from torch import nn
from toy import SGD, Arrays, Data, TrainJob, labels

from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowSGD, Table
from leptonai.training.pytorch.embedding import ShardedEmbedding

ids = np.random.default_rng(1).integers(0, 40, (203, 4))
ids[:, 0] = labels * 7 + 1  # what tells the answer


def words(**changes: object) -> Table:
    settings: dict[str, object] = {
        "name": "words", "width": 6, "num_rows": 50, "rule": RowAdagrad(lr=0.3), "init_scale": 0.1,
        "batch_rows": 256,
    }  # fmt: skip
    return Table(**{**settings, **changes})  # type: ignore[arg-type]


class TableNet(nn.Module):
    """Two tables, one of any ids, under one layer."""

    def __init__(self, table: Table, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.words = ShardedEmbedding(table, mode="sum")
        self.any = ShardedEmbedding(
            Table(name="any", width=2, capacity=128, rule=RowSGD(lr=0.2), batch_rows=256, init_scale=0.1)
        )
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.cat([self.words(x + self.offset), self.any(x[:, 1] * (10**12 + 1))], dim=1)
        return self.layer(torch.tanh(found))


def tabled(
    consistency: str = "bsp", table: Table | None = None, offset: int = 0, **changes: object
) -> TrainJob:
    settings: dict[str, object] = {
        "model": lambda: TableNet(table or words(), offset),
        "data": Data(train=Arrays(ids, labels), evaluate=Arrays(ids[:50], labels[:50])),
        "optimizer": SGD(lr=0.1, momentum=0.9),
    }
    return served(consistency, **{**settings, **changes})
