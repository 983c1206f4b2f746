"""Fakes and checks that outsiders may use in their own tests.

``FakeClock`` moves by hand. The checks raise AssertionError, in words, when an extension breaks what the
training loop relies on.
"""

from leptonai.core.clock import FakeClock
from leptonai.testing.checks import check_augment, check_column, check_flat_learner, check_learner

__all__ = ["FakeClock", "check_augment", "check_column", "check_flat_learner", "check_learner"]
