"""Small random models of current transformers architectures, with a tokenizer and a chat template made here."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Gemma2Config,
    Glm4Config,
    LlamaConfig,
    MT5Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

TEXT = "你好吗我很好今天天气真不错明天去哪里玩火锅怎么样谢谢再见是的好呀,。?!\n"
EOS = 2
SPECIALS = ["<unk>", "<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>"]
WORDS = ["user", "assistant", "system"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(chat: bool = True, around: str = "$A") -> PreTrainedTokenizerFast:
    """One token a character; ChatML as the template.

    Args:
        around: what an encoded text looks like: "<bos> $A" as Llama's tokenizer has it, "$A <eos>" as mT5's.
    """
    tokens = {token: index for index, token in enumerate(dict.fromkeys([*SPECIALS, *WORDS, *TEXT]))}
    model = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    model.pre_tokenizer = Split(Regex("|".join(WORDS) + r"|[\s\S]"), behavior="isolated")
    if around != "$A":
        specials = [(token, tokens[token]) for token in around.split() if token != "$A"]
        model.post_processor = TemplateProcessing(single=around, special_tokens=specials)
    made = PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        **({"bos_token": "<bos>"} if "<bos>" in around else {}),
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = TEMPLATE if chat else None
    return made


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "bos_token_id": 3,
}
_MT5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
CONFIGS = {
    "qwen3": (Qwen3Config, _SMALL),
    "llama": (LlamaConfig, _SMALL),
    "glm4": (Glm4Config, _SMALL),
    "gemma2": (Gemma2Config, {**_SMALL, "final_logit_softcapping": 2.0}),
    "mt5": (MT5Config, _MT5),
}


def write_model(name: str, folder: Path, chat: bool = True, around: str = "$A", **changes: Any) -> Path:
    """A folder as a hub would hold it. The weights are far from zero, so that predictions differ from place to place.

    Args:
        around: see ``tokenizer``.
        changes: of the configuration.
    """
    config_class, settings = CONFIGS[name]
    words = tokenizer(chat and name != "mt5", around)
    config = config_class(vocab_size=len(words), initializer_range=0.3, **{**settings, **changes})
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    if changes.get("tie_word_embeddings") is False and config.tie_word_embeddings:  # T5's says so whatever it is told
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


class Plain:
    """A folder as transformers alone opens it."""

    def __init__(self, folder: Path):
        self.config = AutoConfig.from_pretrained(folder)
        self.encodes = self.config.is_encoder_decoder
        auto = AutoModelForSeq2SeqLM if self.encodes else AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @cached_property
    def stop(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<|im_end|>" if self.tokenizer.chat_template else "<eos>"))

    def asked(self, *turns: str) -> list[int]:
        """What the model reads before it answers."""
        if self.tokenizer.chat_template:
            roles = ("user", "assistant")
            messages = [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(turns)]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return list(self.tokenizer.encode("\n".join(turns) + "\n"))

    def around(self) -> tuple[list[int], list[int]]:
        """What stands before and behind an encoded text."""
        whole = self.tokenizer.encode("好")
        place = whole.index(self.ids("好")[0])
        return whole[:place], whole[place + 1 :]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.no_grad()
    def hidden_and_logits(self, given: Sequence[int], answer: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of every place that an answer's token, or what follows it, is predicted from."""
        if self.encodes:
            start = [self.config.decoder_start_token_id]
            fed = {"input_ids": torch.tensor([given]), "decoder_input_ids": torch.tensor([[*start, *answer]])}
            output = self.model(**fed, output_hidden_states=True)
            return output.decoder_hidden_states[-1][0], output.logits[0]
        output = self.model(torch.tensor([[*given, *answer]]), output_hidden_states=True)
        return output.hidden_states[-1][0, len(given) - 1 :], output.logits[0, len(given) - 1 :]

    def logprobs(self, given: Sequence[int], answer: Sequence[int]) -> Tensor:
        """log p of each token of an answer."""
        logits = self.hidden_and_logits(given, answer)[1][: len(answer)]
        return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]

    def nll(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
        """Mean over the tokens of all answers."""
        return -torch.cat([self.logprobs(given, answer) for given, answer in pairs]).mean().item()

    def greedy(self, given: Sequence[int], count: int) -> str:
        stops = [self.stop, EOS]
        said = self.model.generate(
            torch.tensor([given]), do_sample=False, max_new_tokens=count, eos_token_id=stops, pad_token_id=1
        )[0, 1 if self.encodes else len(given) :]
        return str(self.tokenizer.decode(said, skip_special_tokens=True))
