"""A job that trains in a second: two layers on 64 drawn examples."""

import numpy as np
import torch

from leptonai import SGD, Arrays, Checkpoints, Data, Evaluate, TrainJob


def create_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))


def load_data() -> Data:
    generator = np.random.default_rng(7)
    inputs = generator.normal(size=(64, 8)).astype(np.float32)
    labels = (inputs[:, 0] > 0).astype(np.int64)
    return Data(train=Arrays(inputs, labels), evaluate=Arrays(inputs[:32], labels[:32]))


job = TrainJob(
    name="tiny",
    model=create_model,
    data=load_data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.1),
    epochs=3,
    global_batch_size=16,
    precision="float32",
    evaluate=Evaluate(batch_size=32),
    checkpoints=Checkpoints(every_steps=4),
)
