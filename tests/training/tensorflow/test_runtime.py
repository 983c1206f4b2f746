"""What happens before TensorFlow runs, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_absent_tensorflow_is_an_input_error_that_names_the_extra() -> None:
    # A None in sys.modules makes Python report the module as not installed.
    assert (
        run(
            "import importlib.util, sys\n"
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name: None if name == 'tensorflow' else find(name)\n"
            "from leptonai.core.errors import InputError\n"
            "from leptonai.training.tensorflow.runtime import require_tensorflow\n"
            "try:\n"
            "    require_tensorflow()\n"
            "except InputError as error:\n"
            "    print(error.hint)\n"
        )
        == "pip install openlepton[tensorflow]"
    )


def test_configure_sets_the_threads_once() -> None:
    pytest.importorskip("tensorflow")
    assert (
        run(
            "from leptonai.training.tensorflow.runtime import configure\n"
            "configure(1)\n"
            "import tensorflow as tf\n"
            "print(tf.config.threading.get_intra_op_parallelism_threads(), end=' ')\n"
            "tf.constant(1.0) + 1.0\n"
            "configure(1)\n"
            "try:\n"
            "    configure(2)\n"
            "except Exception as error:\n"
            "    print(type(error).__name__)\n"
        )
        == "1 InputError"
    )
