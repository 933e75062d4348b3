"""Log-probabilities of rows, in batches that never change a score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.nn.batching import batching_of
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import evaluating
from hanmo.rows import IGNORE, Row, chunked, collate


@dataclass(frozen=True)
class RowScore:
    """log p in nats of each scored token of a row, the stop token included."""

    logprobs: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return len(self.logprobs)

    @property
    def nll(self) -> float:
        """Sum over the tokens, in fp64."""
        return -sum(self.logprobs)


def score_rows(
    opened: OpenedModel,
    rows: Sequence[Row],
    batch_size: int = 16,
    on_scored: Callable[[int, RowScore], None] | None = None,
) -> list[RowScore]:
    """log p of every scored token of every row; in fp32 the batch changes it by less than 1e-5.

    ``on_scored`` is called with the index and the score of each row as soon as it is known, the longest rows first.
    NotANumberError if the network computes NaN or infinity.
    """
    found: dict[int, RowScore] = {}
    with evaluating(opened.network) as network:
        at_once = batch_size if len(rows) == 1 or batching_of(network).rows == "any" else 1
        for chosen in batches([row.inputs["input_ids"].shape[-1] + len(row.labels) for row in rows], at_once):
            batch = collate([rows[index] for index in chosen], opened.family.padding)
            batch = {name: value.to(network.device) for name, value in batch.items()}
            logprob_BA = network(**batch).logprob.cpu().double()
            for index, logprob_A, labels_A in zip(chosen, logprob_BA, batch["labels"].cpu(), strict=True):
                found[index] = score = RowScore(tuple(logprob_A[labels_A != IGNORE].tolist()))
                require_finite(score.logprobs, network)
                if on_scored is not None:
                    on_scored(index, score)
    return [found[index] for index in range(len(rows))]


def batches(lengths: Sequence[int], batch_size: int, in_order: bool = False) -> list[Sequence[int]]:
    """Indices in batches: longest first, so that a batch that does not fit into memory fails at once; or in order."""
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    order = list(range(len(lengths)))
    return chunked(order if in_order else sorted(order, key=lambda index: -lengths[index]), batch_size)
