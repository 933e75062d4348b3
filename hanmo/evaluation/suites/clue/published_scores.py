"""The scores of the published CLUE protocol: a "perplexity" of whole prompts, generated answers, and their F1.

Softmax is applied twice, and the probabilities at a token are compared with that token instead of the next.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hanmo.errors import UnsupportedError
from hanmo.families.base import Family, OpenedModel
from hanmo.metrics import unigram_f1
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import evaluating
from hanmo.records import Text
from hanmo.rows import Part, collate

MAX_LENGTH = 512
ANSWER = "答:"
NEW_TOKENS = 100
BUDGET = 2048  # tokens of a batch
CHUNK = 64  # positions whose probabilities exist at the same time


class PublishedScore(NamedTuple):
    """The scores of one prompt: as published, and right."""

    ppl: float  # in fp32, whose rounding decides between almost equal candidates
    nll: float  # the mean of -log p in nats of all tokens but the first


def encode(opened: OpenedModel, text: str, max_length: int = MAX_LENGTH) -> list[int]:
    """Ids with the tokenizer's special tokens, cut on its side."""
    return list(opened.tokenizer(text, max_length=max_length, truncation=True)["input_ids"])


def score_prompts(opened: OpenedModel, prompts: Sequence[str], max_length: int) -> Iterator[tuple[int, PublishedScore]]:
    """The index and score of each prompt, in batches of similar length; UnsupportedError for an encoder-decoder."""
    pad_id = opened.tokenizer.pad_token_id
    encoded = [encode(opened, prompt, max_length) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    with evaluating(opened.network) as network:
        while order:
            chosen = order[: max(BUDGET // len(encoded[order[0]]), 1)]
            del order[: len(chosen)]
            rows = [opened.family.row([Part(tuple(encoded[index]), False)]) for index in chosen]
            if "decoder_input_ids" in rows[0].inputs:
                raise UnsupportedError(
                    f"{opened.source} is an encoder-decoder: the published protocol scores prompts by a network of one "
                    "stack; evaluate without --published"
                )
            batch = collate(rows, opened.family.padding)
            del batch["labels"], batch["weights"]
            logits_BTV = network(**{name: value.to(network.device) for name, value in batch.items()}).logits
            for index, logits_TV in zip(chosen, logits_BTV, strict=True):
                score = published_score(logits_TV, torch.tensor(encoded[index], device=logits_TV.device), pad_id)
                require_finite([score.nll], network)
                yield index, score


def published_score(logits_TV: Tensor, ids_T: Tensor, pad_id: int | None) -> PublishedScore:
    """Score a prompt from its logits; surplus logits on the right are padding.

    If the pad token also ends texts (GLM), the perplexity leaves out their end, as published.
    """
    if logits_TV.device.type == "mps":  # MPS has no float64
        logits_TV, ids_T = logits_TV.cpu(), ids_T.cpu()
    length = len(ids_T)
    kept_T = torch.ones_like(ids_T, dtype=torch.bool) if pad_id is None else ids_T != pad_id
    twice, nll = [], []
    for start in range(0, length, CHUNK):
        logits_cV = logits_TV[start : min(start + CHUNK, length)].float()
        labels_c1 = ids_T[start : start + CHUNK, None]
        twice.append(logits_cV.softmax(-1).softmax(-1).gather(-1, labels_c1)[:, 0].log())
        total_c1 = logits_cV.double().logsumexp(-1, keepdim=True)
        next_n1 = ids_T[start + 1 : start + 1 + len(logits_cV), None]
        nll.append((total_c1[: len(next_n1)] - logits_cV[: len(next_n1)].gather(-1, next_n1))[:, 0])
    ppl = torch.exp(-torch.cat(twice)[kept_T].sum() / kept_T.sum()).item()
    return PublishedScore(ppl, torch.cat(nll).mean().item())


def generate_answer(opened: OpenedModel, prompt: str) -> str:
    """The text after the first "答:" in prompt and reply, decoded together; greedy, 100 tokens.

    As published, a model whose prompts carry no special tokens is not stopped by its end token either.
    """
    family, network = opened.family, opened.network
    text = prompt + family.blank
    context = family.context(Text(text), len(text) * 4 + 16).ids  # no text has more tokens
    start = family.prompt(context)
    stops = start.stop_ids if family.blank else ()
    generated: list[int] = []
    with evaluating(network):
        inputs = {name: value[None].to(network.device) for name, value in start.inputs.items()}
        logits_1qV, state = network.prefill(**inputs)
        while len(generated) < NEW_TOKENS:
            token = int(logits_1qV[0, -1].argmax())
            if token in stops:
                break
            generated.append(token)
            position_1P1 = (start.start + (len(generated) - 1) * start.step)[None, :, None].to(network.device)
            logits_1qV = network.step(torch.tensor([[token]], device=network.device), position_1P1, state)
    # Unused ids are rows of the embedding that stand for no token.
    spelled = [id_ for id_ in generated if id_ not in family.unused_ids]
    return after_answer(family.decode([*start.inputs["input_ids"].tolist(), *spelled]))


def after_answer(text: str) -> str:
    """The published answer in an output: the text after the first "答:", not stripped."""
    return text.partition(ANSWER)[2]


def token_f1(family: Family, prediction: str, references: Sequence[str]) -> tuple[float, bool]:
    """The best F1 over bags of token ids of the references, and whether the prediction equals one of them."""

    def bag(text: str) -> list[str]:
        return list(map(str, family.tokenizer.encode(text, add_special_tokens=False)))

    return unigram_f1([bag(prediction)], [list(map(bag, references))]), prediction in references
