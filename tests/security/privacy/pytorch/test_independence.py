"""Probes for operations across examples that no list of types knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leptonai.core.errors import InputError, Refused
from leptonai.security.privacy.pytorch.independence import check_independence, check_loss


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(x)


def _capacity(x: Tensor) -> Tensor:
    """A mixture's room for one example: the first that wants it gets it."""
    wants = x[:, 0] > -10
    return x * (wants & (wants.cumsum(0) <= 1))[:, None]


CROSSING: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda x: x - x.mean(0),
    "rank": lambda x: x.argsort(0).argsort(0).float(),
    "softmax over examples": lambda x: x.softmax(0),
    "neighbour": lambda x: x + x.roll(1, 0),
    "capacity": _capacity,
    "scale by the batch's maximum": lambda x: x / x.abs().max(),
    "sizes": lambda x: x * len(x),
}


@pytest.mark.parametrize("how", CROSSING.values(), ids=CROSSING.keys())
def test_the_first_module_that_crosses_examples_is_named(how: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ModuleDict({"inside": Apply(how)})["inside"], nn.Linear(4, 2))
    with pytest.raises(Refused, match=r"^1 \(Apply\)"):
        check_independence(model, torch.randn(5, 3))


def test_batch_norm_is_found_and_its_statistics_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(Refused, match=r"^1 \(BatchNorm1d\)"):
        check_independence(model, torch.randn(5, 3))
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert not model.training


def test_examples_in_another_dimension_are_found_even_in_a_square_batch() -> None:
    model = nn.Sequential(Apply(lambda x: x.transpose(0, 1)), nn.Linear(3, 2))
    with pytest.raises(Refused, match="not in dimension 0"):
        check_independence(model, torch.randn(5, 5, 3))


def test_positions_shared_by_all_examples_are_found() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(7, 4), nn.Embedding(5, 4)

        def forward(self, ids: Tensor) -> Tensor:
            found: Tensor = self.token(ids) + self.position(torch.arange(5))
            return found

    with pytest.raises(Refused, match=r"^position \(Embedding\)"):
        check_independence(Model(), torch.randint(0, 7, (5, 5)))


def _independent() -> dict[str, tuple[Any, Any]]:
    x = torch.randn(5, 6, 8)
    encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
    return {
        "dropout": (nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)), x),
        "transformer": (nn.TransformerEncoder(encoder, 1), x),
        "recurrent": (nn.LSTM(8, 4, 2, dropout=0.3, batch_first=True), x),
        "convolution": (nn.Sequential(nn.Conv1d(6, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)), x),
        "keyword inputs": (nn.Bilinear(8, 8, 2), {"input1": x, "input2": x}),
        "several inputs": (nn.Bilinear(8, 8, 2), (x, x)),
        "function": (lambda x: x.softmax(1), x),
        "random function in training only": (Random(), x),
    }


class Random(nn.Module):
    """Dropout by function, which only evaluation mode switches off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("name", _independent())
def test_models_that_keep_examples_apart_pass(name: str) -> None:
    model, batch = _independent()[name]
    check_independence(model, batch)


def test_dropout_rates_come_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.LSTM(8, 4, 2, dropout=0.3, batch_first=True))
    check_independence(model, torch.randn(5, 6, 8))
    assert model[0].p == 0.5
    assert model[1].dropout == 0.3


def test_a_model_that_is_always_random_cannot_be_checked() -> None:
    with pytest.raises(Refused, match="random"):
        check_independence(Apply(torch.rand_like), torch.randn(5, 3))


def test_few_examples_are_an_error() -> None:
    with pytest.raises(InputError, match="at least 3"):
        check_independence(nn.Linear(3, 2), torch.randn(2, 3))


LABELS = torch.tensor([0, 2, 1, 0])
PADDED = torch.tensor([[0, 2, 1], [0, -100, -100], [1, 1, -100], [2, 2, 2]])


def _contrastive(outputs: Tensor, _labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.t(), torch.arange(len(outputs)))


def _masked(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), labels)


def _masked_by_example(outputs: Tensor, labels: Tensor) -> Tensor:
    each = F.cross_entropy(outputs.transpose(1, 2), labels, reduction="none")
    return (each.sum(1) / (labels >= 0).sum(1)).mean()


def test_the_mean_over_examples_passes() -> None:
    torch.manual_seed(0)
    check_loss(F.cross_entropy, torch.randn(4, 3), LABELS)
    check_loss(F.mse_loss, torch.randn(4, 3), torch.randn(4, 3))
    check_loss(_masked_by_example, torch.randn(4, 3, 3), PADDED)


@pytest.mark.parametrize(
    ("loss", "shape", "labels", "word"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), (4, 3), LABELS, 'reduction="mean"'),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0])), (4, 3), LABELS, "depends on the others"),
        (nn.CrossEntropyLoss(ignore_index=0), (4, 3), LABELS, "depends on the others"),
        (_contrastive, (4, 3), LABELS, "depends on the others"),
        (_masked, (4, 3, 3), PADDED, "padding"),
    ],
)
def test_other_losses_are_refused(loss: Any, shape: tuple[int, ...], labels: Tensor, word: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(Refused) as caught:
        check_loss(loss, torch.randn(shape), labels)
    assert word in str(caught.value)


def test_a_loss_for_each_example_is_no_scalar() -> None:
    with pytest.raises(InputError, match="scalar"):
        check_loss(nn.CrossEntropyLoss(reduction="none"), torch.randn(4, 3), LABELS)
    with pytest.raises(InputError, match="at least 2"):
        check_loss(F.cross_entropy, torch.randn(1, 3), LABELS[:1])
