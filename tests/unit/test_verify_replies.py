"""Verifiers on replies that are hard to judge (verified_replies.py): what a person says of them."""

from typing import Any

import pytest

from hanmo.verify import VERIFIERS
from tests.unit.verified_replies import ALL


@pytest.mark.parametrize(("verifier", "settings", "answer", "reply", "right"), ALL)
def test_a_verifier_judges_as_a_person(
    verifier: str, settings: dict[str, Any], answer: str, reply: str, right: bool
) -> None:
    assert VERIFIERS[verifier].function(reply, answer, **settings) == right
