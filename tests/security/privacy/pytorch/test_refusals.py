"""What is refused by its type."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leptonai.core.errors import InputError, Refused
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.refusals import check_model


class MoELayer(nn.Module):
    pass


class HomoEncoder(nn.Module):
    """Not a mixture, whatever the letters."""


REFUSED = [
    (nn.BatchNorm1d(4), "GroupNorm"),
    (nn.BatchNorm2d(4, affine=False), "GroupNorm"),
    (nn.BatchNorm3d(4, track_running_stats=False), "GroupNorm"),
    (nn.SyncBatchNorm(4), "GroupNorm"),
    (nn.LazyBatchNorm1d(), "sizes"),
    (nn.InstanceNorm2d(4, track_running_stats=True), "track_running_stats=False"),
    (nn.LazyLinear(3), "run the model once"),
    (MoELayer(), "dense"),
    (nn.Embedding(3, 2, max_norm=1.0), "leave max_norm out"),
    (nn.EmbeddingBag(3, 2, sparse=True), "sparse=False"),
    (nn.TransformerEncoderLayer(8, 2), "batch_first=True"),
    (nn.TransformerDecoderLayer(8, 2), "batch_first=True"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "remove_parametrizations"),
    (nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), "remove_parametrizations"),
    (nn.Linear(2, 2).double(), "float32"),
    (nn.Linear(2, 2).half(), "float32"),
]


@pytest.mark.parametrize(("layer", "substitute"), REFUSED, ids=lambda each: str(type(each).__name__))
def test_a_refusal_names_the_full_path_and_the_substitute(layer: nn.Module, substitute: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"inner": layer}))
    with pytest.raises(Refused, match=r"1\.inner") as caught:
        check_model(model)
    assert substitute in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LSTM(2, 3, batch_first=False), HomoEncoder(),
        nn.MultiheadAttention(8, 2), nn.Transformer(8, 2, 1, 1, 8, batch_first=True), nn.Embedding(3, 2, padding_idx=0),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_what_keeps_examples_apart_passes(layer: nn.Module) -> None:
    check_model(nn.Sequential(nn.Linear(2, 2), layer))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(Refused, match="no trainable"):
        check_model(nn.Linear(2, 2).requires_grad_(False))


def test_frozen_parameters_may_have_another_type() -> None:
    check_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16).requires_grad_(False)))


def test_the_clipper_takes_no_batch_norm_either() -> None:
    with pytest.raises((InputError, Refused), match=r"1.*GroupNorm"):
        Clipper(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), clip=1.0)
