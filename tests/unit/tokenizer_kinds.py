"""Tokenizers of the kinds that models of transformers have, made here: what differs is what they do at boundaries."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, MT5Config, MT5ForConditionalGeneration, PreTrainedTokenizerFast

TEXT = "你好吗我很好今天气真不错明去哪里玩火锅怎么样谢再见答问题系统"
LATIN = "ABCDabc answer:user assistant system\n[INST]/<>|"
CORPUS = [
    "AB ab answer: A",
    "user assistant system",
    "答：A\n\n答：B\n\n",
    "\n\n\n\n",
    "你好 你好，我很好。",
    TEXT,
    LATIN,
]
SPECIALS = ["<unk>", "<pad>", "</s>", "<s>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (  # spaces around both texts, the system text within the first turn
    "{% if messages[0].role == 'system' %}{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set said = messages[1:] %}{% else %}{% set head = '' %}{% set said = messages %}{% endif %}"
    "{% for m in said %}{% if m.role == 'user' %}<s>[INST] {{ (head if loop.first else '') + m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} </s>{% endif %}{% endfor %}"
)
GEMMA = (  # knows no system text
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}<s>"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THINKS = CHATML.replace(  # an empty thought before what is said, which is not asked for
    "{{ m.content }}", "{{ ('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m.content }}"
)
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "gemma": GEMMA, "thinks": THINKS}


def _trained(model: Tokenizer, **more: object) -> Tokenizer:
    model.train_from_iterator(
        CORPUS * 3, BpeTrainer(vocab_size=600, special_tokens=SPECIALS, show_progress=False, **more)
    )
    return model


def sentencepiece() -> Tokenizer:
    """Llama's: ``▁`` before every text and every piece of text behind a special token."""
    made = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _trained(made)


def byte_level() -> Tokenizer:
    """GPT-2's: a space belongs to the word behind it."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _trained(made, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def bert() -> Tokenizer:
    """White space is dropped; a text stands between ``<s>`` and ``</s>`` (BERT's [CLS] and [SEP])."""
    tokens = dict.fromkeys([*SPECIALS, *TEXT, *"ABCDabc:,。|", *(f"##{char}" for char in "ABCDabc")])
    made = Tokenizer(WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(SPECIALS)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 2)])
    return made


def t5() -> Tokenizer:
    """Any white space is a space, and ``</s>`` ends a text."""
    pieces = [(token, 0.0) for token in SPECIALS] + [
        (char, -3.0) for char in dict.fromkeys("▁" + TEXT + "ABCDabc:,。|")
    ]
    made = Tokenizer(Unigram(pieces, unk_id=0))
    made.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(SPECIALS)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "sentencepiece": sentencepiece,
    "byte_level": byte_level,
    "bert": bert,
    "t5": t5,
}


def tokenizer(kind: str, template: str = "") -> PreTrainedTokenizerFast:
    """One of ``KINDS`` with one of ``TEMPLATES``, or without any."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        unk_token="<unk>",
        pad_token="<pad>",
        **({"sep_token": "</s>"} if kind == "bert" else {"eos_token": "</s>"}),
        additional_special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
    )
    made.chat_template = TEMPLATES[template] if template else None
    return made


def write_model(kind: str, folder: Path, template: str = "") -> Path:
    """A small random model with such a tokenizer: mT5 for t5, otherwise Llama."""
    words = tokenizer(kind, template)
    small = {"vocab_size": len(words), "pad_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1}
        model = MT5ForConditionalGeneration(MT5Config(**small, **sizes))
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**small, **sizes, num_key_value_heads=2, max_position_embeddings=512))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
