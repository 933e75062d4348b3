"""What a run reads of a checkpoint besides weights, before any of it is believed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, NonNegativeInt, PositiveFloat, TypeAdapter
from torch.distributed.checkpoint.api import CheckpointException
from transformers import TrainerState

from hanmo.checkpoints.originals.unpickle import read_pickle
from hanmo.errors import CheckpointError, HanmoError, quoted, reraise_out_of_memory

# pickles that the Trainer reads besides weights
PICKLES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "memory_*.pt")


@dataclass(frozen=True)
class _State:
    """What transformers' Trainer reads of trainer_state.json, besides settings that the new run has anyway."""

    epoch: FiniteFloat | None = 0.0
    global_step: NonNegativeInt = 0
    logging_steps: PositiveFloat = 500
    eval_steps: PositiveFloat = 500
    save_steps: PositiveFloat = 500
    num_input_tokens_seen: NonNegativeInt = 0
    total_flos: FiniteFloat = 0.0
    log_history: list[dict[str, Any]] | None = None
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    stateful_callbacks: dict[str, Any] | None = None


@contextmanager
def restoring(path: str | Path) -> Iterator[None]:
    """Raise CheckpointError for what goes wrong while a file or folder of a checkpoint is restored."""
    try:
        yield
    except HanmoError:
        raise
    except (Exception, CheckpointException) as error:  # a damaged file can make its reader fail in any way
        reraise_out_of_memory(error)
        advice = "remove the checkpoint to go on from the one before, if there is one"
        raise CheckpointError(f"{path}: cannot be resumed from: {quoted(error):.500}; {advice}") from error


def check_state(checkpoint: Path) -> None:
    """CheckpointError if a state file of a checkpoint is damaged or needs code."""
    for file in (file for name in PICKLES for file in sorted(checkpoint.glob(name))):
        read_pickle(file)
    with restoring(state := checkpoint / "trainer_state.json"):
        TypeAdapter(_State).validate_json(state.read_bytes(), strict=True)
        TrainerState.load_from_json(str(state))
