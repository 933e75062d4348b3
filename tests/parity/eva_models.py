"""The recorded EVA models, opened with the rules that a recorded run names, and its arguments as our settings."""

import copy
import functools
from typing import Any

from hanmo.checkpoints.open import open_model
from hanmo.families.base import OpenedModel
from hanmo.generation.settings import Settings
from hanmo.rows import Context
from tests.places import PARITY, load
from tests.ranks import RANKS

EVA = PARITY / "eva"
MODELS = load(EVA / "models.json", {})


def opened(model: str, rules: str | None, checkpoint: str | None = None) -> OpenedModel:
    """A recorded model, from its own checkpoint or from another of the same weights; a new copy for each test."""
    read = _opened(model, rules, checkpoint)
    return read if RANKS > 1 else copy.deepcopy(read)  # what several processes share cannot be copied


@functools.cache
def _opened(model: str, rules: str | None, checkpoint: str | None) -> OpenedModel:
    facts = MODELS[model]
    return open_model(
        EVA / (checkpoint or facts["checkpoint"]),
        config=EVA / facts["config"],
        vocab=EVA / facts["vocab"],
        rules=EVA / rules if rules else None,
        dtype="fp32",
        device="cpu",
        tensor_parallel=RANKS,
    )


def settings(args: dict[str, Any]) -> Settings:
    """The original's arguments. It draws unless it searches with beams and no filter is on."""
    return Settings(
        max_new_tokens=args["max_generation_length"],
        min_new_tokens=args["min_generation_length"],
        do_sample=args["num_beams"] == 1 or args["top_p"] > 0 or args["top_k"] > 0,
        temperature=args["temperature"],
        top_k=args["top_k"],
        top_p=args["top_p"],
        num_beams=args["num_beams"],
        length_penalty=args["length_penalty"],
        early_stopping=args["early_stopping"],
        repetition_penalty=args["repetition_penalty"],
        no_repeat_ngram_size=args["no_repeat_ngram_size"],
        published=True,
    )


def contexts(case: dict[str, Any], tokenizer: Any) -> list[Context]:
    """The recorded contexts, without the padding and the ``<s_0>`` that ``Family.prompt`` appends."""
    result = []
    for ids, full_ids in zip(case["enc_input_ids"], case["full_context"], strict=True):
        end = ids.index(tokenizer.bos_token_id)
        assert set(ids[end + 1 :]) <= {tokenizer.pad_token_id}
        result.append(Context(tuple(ids[:end]), tuple(full_ids)))
    return result
