"""The tensors that the port of GLM's tokenizer makes for blank filling and multiple choice."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import BatchEncoding

from hanmo.families.glm.tokenization import GlmTokenizer

MASKS = ["[MASK]", "[sMASK]", "[gMASK]"]


def build_inputs_for_generation(
    tokenizer: GlmTokenizer,
    encoded: BatchEncoding,
    max_gen_length: int = 512,
    targets: str | Sequence[str] | None = None,
    padding: bool = False,
) -> BatchEncoding:
    """Inputs for filling the first blank of each text: its place in the positions, the blank's text behind it.

    Args:
        encoded: what calling the tokenizer gave: ``input_ids`` and ``attention_mask``, (B, S).
        max_gen_length: G, tokens of the blank's text.
        targets: the blanks' texts, to learn from; cut to ``max_gen_length`` with their ``<|endofpiece|>``.
        padding: fill targets up to ``max_gen_length`` rather than to the longest of the batch.

    Returns:
        Tensors, int64. ``position_ids`` (B, 2, S + G). Without targets ``input_ids`` (B, S + 1), which end in
        ``<|startofpiece|>``, and ``generation_attention_mask`` (B, 1, S + G, S + G) for the whole of generation.
        With targets ``input_ids`` (B, S + G), ``attention_mask`` (B, 1, S + G, S + G) and ``labels``
        (B, S + G), which hold the pad id where nothing is to be learnt.

    Raises:
        ValueError: a text has no blank.
    """
    context_BS, seen_BS = torch.as_tensor(encoded["input_ids"]), torch.as_tensor(encoded["attention_mask"])
    batch, context = context_BS.shape
    is_blank_BS = torch.isin(context_BS, torch.tensor(tokenizer.convert_tokens_to_ids(MASKS)))
    if not is_blank_BS.any(1).all():
        raise ValueError("Cannot find mask token in the input")
    sop_B1 = torch.full((batch, 1), tokenizer.convert_tokens_to_ids("<|startofpiece|>"))
    length = max_gen_length
    if targets is not None:
        texts = [targets] if isinstance(targets, str) else list(targets)
        ids = [
            [*tokenizer.encode_plain(text)[: max_gen_length - 1], tokenizer.convert_tokens_to_ids("<|endofpiece|>")]
            for text in texts
        ]
        length = max_gen_length if padding else max(map(len, ids))
        targets_BG = torch.tensor([[*row, *[tokenizer.pad_token_id] * (length - len(row))] for row in ids])
    blank_B1 = is_blank_BS.int().argmax(1, keepdim=True)
    places_BT = torch.cat([torch.arange(context).expand(batch, -1), blank_B1.expand(-1, length)], 1)
    steps_BT = torch.cat([torch.zeros(context, dtype=torch.long), torch.arange(1, length + 1)]).expand(batch, -1)
    mask_BTT = torch.zeros(batch, context + length, context + length, dtype=torch.long)
    mask_BTT[:, :, :context] = seen_BS[:, None]
    mask_BTT[:, context:, context:] = torch.ones(length, length, dtype=torch.long).tril()
    inputs = {"position_ids": torch.stack([places_BT, steps_BT], 1)}
    if targets is None:
        inputs["input_ids"] = torch.cat([context_BS, sop_B1], 1)
        inputs["generation_attention_mask"] = mask_BTT[:, None]
    else:
        inputs["input_ids"] = torch.cat([context_BS, sop_B1, targets_BG[:, :-1]], 1)
        inputs["attention_mask"] = mask_BTT[:, None]
        inputs["labels"] = torch.cat([torch.full_like(context_BS, tokenizer.pad_token_id), targets_BG], 1)
    return BatchEncoding(inputs)


def build_inputs_for_multiple_choice(
    tokenizer: GlmTokenizer, encoded: BatchEncoding, choices: Sequence[Sequence[str]]
) -> BatchEncoding:
    """Inputs that score all choices for the ``[MASK]`` of each text at once; choices do not see one another.

    Args:
        encoded: what calling the tokenizer gave: ``input_ids`` and ``attention_mask``, (B, S).
        choices: for each text the texts that may fill its blank.

    Returns:
        Tensors, int64: ``input_ids`` (B, T), ``position_ids`` (B, 2, T), ``attention_mask`` (B, 1, T, T). Lists
        by text and choice: ``choice_ids``, and ``choice_indices``, the places whose logits predict them.

    Raises:
        ValueError: a text has no ``[MASK]``.
    """
    rows = []
    for context, seen, texts in zip(encoded["input_ids"], encoded["attention_mask"], choices, strict=True):
        rows.append(_choices_of_one(tokenizer, torch.as_tensor(context), torch.as_tensor(seen), texts))
    width = max(len(row["input_ids"]) for row in rows)

    def filled(row: dict[str, Any]) -> tuple[Any, Any, Any]:
        missing = width - len(row["input_ids"])
        last_P1 = row["position_ids"][:, -1:]
        return (
            pad(row["input_ids"], (0, missing)),
            torch.cat([row["position_ids"], last_P1.expand(-1, missing)], 1),
            pad(row["attention_mask"], (0, missing, 0, missing)),
        )

    ids, positions, masks = zip(*map(filled, rows), strict=True)
    return BatchEncoding(
        {
            "input_ids": torch.stack(ids),
            "position_ids": torch.stack(positions),
            "attention_mask": torch.stack(masks)[:, None],
            "choice_ids": [row["choice_ids"] for row in rows],
            "choice_indices": [row["choice_indices"] for row in rows],
        }
    )


def _choices_of_one(tokenizer: GlmTokenizer, context_S: Any, seen_S: Any, texts: Sequence[str]) -> dict[str, Any]:
    blanks = (context_S == tokenizer.mask_token_id).nonzero()
    if not len(blanks):
        raise ValueError(f"No [MASK] in the input: {tokenizer.mask_token_id} is not in list")
    context, choice_ids = len(context_S), [tokenizer.encode_plain(text) for text in texts]
    ids, steps, indices = context_S.tolist(), [0] * context, []
    for choice in choice_ids:
        indices.append(list(range(len(ids), len(ids) + len(choice))))
        ids += [tokenizer.convert_tokens_to_ids("<|startofpiece|>"), *choice[:-1]]
        steps += range(1, len(choice) + 1)
    total = len(ids)
    mask_TT = torch.zeros(total, total, dtype=torch.long)
    mask_TT[:, :context] = seen_S
    for places in indices:
        start, end = places[0], places[-1] + 1
        mask_TT[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.long).tril()
    places_T = [*range(context), *[int(blanks[0])] * (total - context)]
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor([places_T, steps]),
        "attention_mask": mask_TT,
        "choice_ids": choice_ids,
        "choice_indices": indices,
    }
