"""The scores of the published CLUE protocol: a "perplexity" of whole prompts, generated answers, and their F1.

Softmax is applied twice, and the probabilities at a token are compared with that token instead of the next. The same pass
gives the right score: the mean of -log p of each token but the first, given those before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class PublishedScore:
    """The scores of one prompt."""

    ppl: float  # as published, in fp32, whose rounding decides between candidates that hardly differ
    exact: float  # the same without rounding
    nll: float  # the mean of -log p in nats of all tokens but the first


def encode(opened: OpenedModel, text: str, max_length: int = MAX_LENGTH) -> list[int]:
    """Ids with the tokenizer's special tokens, cut on its side."""
    return list(opened.tokenizer(text, max_length=max_length, truncation=True)["input_ids"])


def score_prompts(opened: OpenedModel, prompts: Sequence[str], max_length: int) -> Iterator[tuple[int, PublishedScore]]:
    """The score of each prompt with its index, as soon as it is known: prompts of similar length share a batch.

    Raises:
        UnsupportedError: the network is an encoder-decoder, for which the protocol is not defined.
    """
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

    Where the pad token also ends texts (GLM), their end is left out of the perplexity, as published.
    """
    if logits_TV.device.type == "mps":  # has no float64
        logits_TV, ids_T = logits_TV.cpu(), ids_T.cpu()
    length = len(ids_T)
    kept_T = torch.ones_like(ids_T, dtype=torch.bool) if pad_id is None else ids_T != pad_id
    rounded, twice, nll = [], [], []
    for start in range(0, length, CHUNK):
        logits_cV = logits_TV[start : min(start + CHUNK, length)].float()
        labels_c1 = ids_T[start : start + CHUNK, None]
        rounded.append(logits_cV.softmax(-1).softmax(-1).gather(-1, labels_c1)[:, 0].log())
        total_c1 = logits_cV.double().logsumexp(-1, keepdim=True)
        places_c = torch.arange(start, start + len(logits_cV), device=ids_T.device)
        prob_c = (logits_cV.gather(-1, labels_c1) - total_c1).exp()[:, 0]
        # log of the sum of exp(p): what exceeds 1 in each term is small and summed by itself, so that fp32 is enough.
        surplus_c = (logits_cV - total_c1.float()).exp().expm1().sum(-1, dtype=torch.float64)
        twice.append((logits_cV.shape[-1] + surplus_c).log() - prob_c)
        ahead_n = places_c[places_c + 1 < length]
        nll.append((total_c1[: len(ahead_n)] - logits_cV[: len(ahead_n)].gather(-1, ids_T[ahead_n + 1][:, None]))[:, 0])
    ppl = torch.exp(-torch.cat(rounded)[kept_T].sum() / kept_T.sum()).item()
    exact = torch.cat(twice)[kept_T].mean().exp().item()
    return PublishedScore(ppl, exact, torch.cat(nll).mean().item())


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
    """The published reading of an output: the text after the first "答:", unstripped; "" if there is none."""
    return text.partition(ANSWER)[2]


def token_f1(family: Family, prediction: str, references: Sequence[str]) -> tuple[float, bool]:
    """The best F1 over bags of token ids of the references, and whether the prediction equals one of them."""

    def bag(text: str) -> list[str]:
        return list(map(str, family.tokenizer.encode(text, add_special_tokens=False)))

    return unigram_f1([bag(prediction)], [list(map(bag, references))]), prediction in references
