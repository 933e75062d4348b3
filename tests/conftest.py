"""What all tests share: property tests without a deadline, and garbage collection that skips the libraries."""

import gc

import pytest
from hypothesis import settings

settings.register_profile("hanmo", deadline=None)  # other work on the machine is no failure of ours
settings.load_profile("hanmo")


@pytest.fixture(autouse=True, scope="module")
def _frozen_libraries() -> None:
    """accelerate collects garbage after every training run. Most of that time goes to the objects of imported libraries,
    which are never garbage."""
    gc.collect()
    gc.freeze()
