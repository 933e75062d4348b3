"""Small random models of current transformers architectures, with a tokenizer and a chat template made here."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    Glm4Config,
    LlamaConfig,
    MT5Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

TEXT = "你好吗我很好今天天气真不错明天去哪里玩火锅怎么样谢谢再见是的好呀,。?!\n"
SPECIALS = ["<unk>", "<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>"]
WORDS = ["user", "assistant", "system"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a character; ChatML as the template."""
    tokens = dict.fromkeys([*SPECIALS, *WORDS, *TEXT])
    model = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    model.pre_tokenizer = Split(Regex("|".join(WORDS) + r"|[\s\S]"), behavior="isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
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


def write_model(name: str, folder: Path, chat: bool = True) -> Path:
    """A folder as a hub would hold it. The weights are far from zero, so that predictions differ from place to place."""
    config_class, settings = CONFIGS[name]
    words = tokenizer(chat and name != "mt5")
    config = config_class(vocab_size=len(words), initializer_range=0.3, **settings)
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
