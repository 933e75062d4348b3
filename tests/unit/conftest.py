"""What tests of several modules ask for."""

import pytest

from hanmo.families.base import OpenedModel
from tests.unit.tiny import tiny_eva


@pytest.fixture
def eva() -> OpenedModel:
    """A tiny EVA of the test's own."""
    return tiny_eva()
