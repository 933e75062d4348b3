"""Train, dev and test by content: a record's split is a function of its text alone.

Adding data never moves a record, the same text never lies in two splits, and several machines agree without talking.
"""

from dataclasses import dataclass

from hanmo.data.prepare.normalisation import text_hash
from hanmo.errors import ConfigError
from hanmo.records import Dialogue, Record, Text

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Shares:
    """The shares of the data for development and test; a larger test share moves no record out of the test set."""

    dev: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        if min(self.dev, self.test) < 0 or self.dev + self.test >= 1:
            raise ConfigError(f"shares dev={self.dev} and test={self.test}: each 0 or more, both together below 1")

    def split(self, key: str) -> str:
        if not self.dev and not self.test:
            return "train"
        place = text_hash(key) / 2**64
        return "test" if place < self.test else "dev" if place < self.test + self.dev else "train"


def split_key(record: Record) -> str:
    """What decides the split where a source says nothing else: the text, the dialogue's first turn, the prompt."""
    if isinstance(record, Text):
        return record.text
    return record.turns[0] if isinstance(record, Dialogue) else record.prompt
