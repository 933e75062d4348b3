"""Log-probabilities of rows, in batches that never change a score, and what a result says about its origin."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hanmo
from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.nn.batching import batching_of
from hanmo.nn.finite import require_finite
from hanmo.records import Record
from hanmo.rows import IGNORE, Row, collate

Progress = Callable[[int, int], None]  # done, of how many
NO_MATTER = ("_name_or_path", "architectures", "dtype", "transformers_version")  # of a configuration


@dataclass(frozen=True)
class RowScore:
    """How well the model predicts one row: log p of each scored token (the stop token included), in nats."""

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
    progress: Progress | None = None,
    on_scored: Callable[[int, RowScore], None] | None = None,
) -> list[RowScore]:
    """log p of every scored token of every row, in the order of the rows.

    Rows of similar length share a batch. A score does not depend on the batch: in fp32 it moves by less than 1e-5.

    Args:
        on_scored: called with the index and the score of each row as soon as it is known, the longest rows first.

    Raises:
        NotANumberError: the network computes what is no number.
    """
    found: list[RowScore | None] = [None] * len(rows)
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
            if progress is not None:
                progress(sum(score is not None for score in found), len(rows))
    return [score for score in found if score is not None]


def batches(lengths: Sequence[int], batch_size: int, in_order: bool = False) -> Iterator[list[int]]:
    """Indices in batches: longest first, so that what does not fit into memory fails at once; or as they come."""
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    order = list(range(len(lengths)))
    if not in_order:
        order.sort(key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@contextmanager
def evaluating(network: Any) -> Iterator[Any]:
    """The network without dropout and gradients; it goes back to training if that is where it came from."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield network
    finally:
        network.train(training)


def records_hash(records: Iterable[Record]) -> str:
    """What was evaluated: the first 16 hex digits of sha256 over the records, whatever file they came from."""
    digest = hashlib.sha256()
    for record in records:
        content = {name: value for name, value in asdict(record).items() if name != "where"}
        digest.update(json.dumps([type(record).__name__, content], ensure_ascii=False, sort_keys=True).encode("utf-8"))
    return digest.hexdigest()[:16]


def weights_hash(network: torch.nn.Module) -> str:
    """Which weights were evaluated: the first 16 hex digits of sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def computed_by(opened: OpenedModel) -> dict[str, str]:
    """What a score hangs on besides what was asked: weights, configuration, and the floating type it is computed in."""
    config = {name: value for name, value in opened.family.config.to_dict().items() if name not in NO_MATTER}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    return {
        "weights": weights_hash(opened.network),
        "config": digest.hexdigest()[:16],
        "precision": str(opened.network.dtype).removeprefix("torch."),
    }


def software() -> dict[str, str]:
    """Which hanmo found a result: its version, and the commit where it runs from a checkout or was installed from one.

    "+" after the commit: files of the checkout were changed since.
    """
    found = {"hanmo": hanmo.__version__}
    if commit := _checkout() or _installed():
        found["commit"] = commit
    return found


def _checkout() -> str:
    """The commit of the checkout this file lies in; "" where it lies in none, or git is not there."""
    root = Path(hanmo.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip()[:12] + "+" * bool(git("status", "--porcelain", "--", "hanmo"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _installed() -> str:
    """The commit that pip installed, which it notes where it took the package from a repository."""
    try:
        noted = metadata.distribution("hanmo").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return ""
    return str(json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", ""))[:12]
