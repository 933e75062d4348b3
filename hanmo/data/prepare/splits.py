"""Train, dev and test by content: a record's split is a function of its text alone, so added data moves no record."""

from dataclasses import dataclass

from hanmo.data.prepare.normalisation import text_hash
from hanmo.errors import ConfigError

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Shares:
    """Shares of the data; a larger share for the test moves no record out of it."""

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
