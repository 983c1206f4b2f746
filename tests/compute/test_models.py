from __future__ import annotations

import pytest

from leptonai.compute.models import find_model, model_names
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

# Parameters in units of 1e9 that the papers themselves give for the models.
PUBLISHED = {
    "gpt-2-xl": 1.5, "gpt-3-6.7b": 6.7, "megatron-1.7b": 1.7, "megatron-39.1b": 39.1, "megatron-1008b": 1008.0,
    "gpt-22b": 22.0, "gpt-175b": 175.0, "gpt-530b": 530.0, "gpt-1t": 1008.0, "llama-2-7b": 6.74,
    "llama-2-70b": 69.0, "llama-3-8b": 8.03, "llama-3-70b": 70.6, "llama-3-405b": 405.9, "mistral-7b": 7.24,
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_a_known_model_has_as_many_parameters_as_its_paper_says(name: str, billions: float) -> None:
    # Tied embeddings, where a model has two, cost llama-3-8b half a billion of its eight.
    assert find_model(name).num_parameters == pytest.approx(billions * 1e9, rel=0.07)


def test_numbers_describe_a_model() -> None:
    made = Transformer(num_layers=2, hidden=8, num_heads=2, sequence=16, vocabulary=100, feed_forward=20)
    assert find_model("2, 8, 2,16,100 ,20") == made
    assert find_model("2,8,2,16,100").width == 32
    assert find_model(" GPT-22B ") == find_model("gpt-22b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpt-22", "did you mean gpt-22b"),
        ("zzzz", "known names: gpt-2-small"),
        ("1,2,3", "expected five or six numbers, found 3"),
        ("2,8,two,16,100", "expected num_heads to be a whole number, found 'two'"),
        ("2,8,2,16,-100", "expected vocabulary to be a whole number"),
        ("2,8,3,16,100", "multiple of num_heads"),
        ("0,8,2,16,100", "expected num_layers >= 1"),
    ],
)
def test_a_wrong_model_is_told_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        find_model(text)
    assert said in str(caught.value)


def test_every_name_is_known_once() -> None:
    names = model_names()
    assert len(names) == len(set(names)) > 20
    assert all(find_model(name).num_parameters > 0 for name in names)
