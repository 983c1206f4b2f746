"""The toy with a parameter server."""

import dataclasses
import os

import torch
from toy import Net, toy

from leptonai.training.elastic import Elastic
from leptonai.training.job import TrainJob
from leptonai.training.optimizers import SGD
from leptonai.training.parameter_server.settings import ParameterServer


def served(consistency: str = "bsp", **changes: object) -> TrainJob:
    names = [item.name for item in dataclasses.fields(ParameterServer) if item.name != "consistency"]
    settings = {name: changes.pop(name) for name in names if name in changes}
    server = ParameterServer(consistency=consistency, **settings)  # type: ignore[arg-type]
    return toy(**{"parameter_server": server, "elastic": Elastic(spare=0), **changes})  # type: ignore[arg-type]


class Poisoned(Net):
    """A net whose loss is not a number in the first training call of whoever comes first, and never again."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.layers(x)
        if self.training and len(x) > 4:  # not when the job is tried on a few examples
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
                outputs = outputs * float("nan")
            except FileExistsError:
                pass
        return outputs


def keras_net() -> object:
    import keras

    return keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(24, activation="tanh"), keras.layers.Dense(3)]
    )


def served_keras(consistency: str, **changes: object) -> TrainJob:
    return served(consistency, model=keras_net, optimizer=SGD(lr=0.1, momentum=0.9), **changes)


job = served()
