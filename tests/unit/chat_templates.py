"""Chat templates in the manner of five kinds of models, written here, and what they make of one conversation."""

from dataclasses import dataclass, field

import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt
from tests.unit.tokenizer_kinds import byte_level

SYSTEM, ASKED, THOUGHT, SAID, NEXT = "系统", "你好吗", "很好", "我很好。", " 再见"
REPLY = f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"  # as a thinking model writes it
ANSWER = "谢谢"  # to the last turn
TALK = (ASKED, REPLY, NEXT)
MARKS = [
    "<|im_start|>", "<|im_end|>", "<|bot|>", "<|head|>", "<|/head|>", "<|eot|>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|end|>", "<turn>", "</turn>",
]  # fmt: skip
ASK = "{% if add_generation_prompt %}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    + ASK
    + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (  # a date that has a default, and texts without white space around them
    "{{ bos_token }}{% if today is not defined %}{% set today = '26 Jul 2024' %}{% endif %}"
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content | trim %}{% set said = messages[1:] %}"
    "{% else %}{% set told = '' %}{% set said = messages %}{% endif %}"
    "<|head|>system<|/head|>\n\nToday: {{ today }}\n\n{{ told }}<|eot|>"
    "{% for m in said %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    + ASK
    + "<|head|>assistant<|/head|>\n\n{% endif %}"
)
PHI = (  # the end of a whole conversation is another token than that of a turn
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    + ASK
    + "{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (  # no system text; turns alternate
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}</turn>\n{% endfor %}"
    + ASK
    + "<turn>model\n{% endif %}"
)
QWEN3 = (  # reasoning is kept behind the last turn of the user only
    "{% set now = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set now.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set thought, said = '', m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > now.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ said }}<|im_end|>\n{% endfor %}"
    + ASK
    + "<|im_start|>assistant\n"
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TOOLS = (  # calls as JSON in marks, results as turns of the user, as Hermes and Qwen write them
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}" + ASK + "<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A template with arguments, and the prompt that it makes of ``TALK``."""

    template: str
    prompt: str
    arguments: dict[str, object] = field(default_factory=dict)
    system: str = SYSTEM
    end: str = "<|im_end|>"  # ends a turn


_CHATML = (
    "<|im_start|>system\n系统<|im_end|>\n<|im_start|>user\n你好吗<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
)
_CHATML += "<|im_start|>user\n 再见<|im_end|>\n<|im_start|>assistant\n"
_LLAMA = "<|bot|><|head|>system<|/head|>\n\nToday: {}\n\n系统<|eot|><|head|>user<|/head|>\n\n你好吗<|eot|>"
_LLAMA += (
    f"<|head|>assistant<|/head|>\n\n{REPLY}<|eot|><|head|>user<|/head|>\n\n再见<|eot|><|head|>assistant<|/head|>\n\n"
)
_PHI = f"<|system|>\n系统<|end|>\n<|user|>\n你好吗<|end|>\n<|assistant|>\n{REPLY}<|end|>\n<|user|>\n 再见<|end|>\n<|assistant|>\n"
_GEMMA = f"<|bot|><turn>user\n你好吗</turn>\n<turn>model\n{REPLY}</turn>\n<turn>user\n再见</turn>\n<turn>model\n"
CASES = {
    "chatml": Case(CHATML, _CHATML.format(REPLY)),
    "llama": Case(LLAMA, _LLAMA.format("26 Jul 2024"), end="<|eot|>"),
    "llama with a date": Case(LLAMA, _LLAMA.format("1 May 2025"), {"today": "1 May 2025"}, end="<|eot|>"),
    "phi": Case(PHI, _PHI, end="<|end|>"),
    "gemma": Case(GEMMA, _GEMMA, system="", end="</turn>"),
    "qwen3": Case(QWEN3, _CHATML.format(SAID)),
    "qwen3 thinking": Case(QWEN3, _CHATML.format(SAID), {"enable_thinking": True}),
    "qwen3 not thinking": Case(QWEN3, _CHATML.format(SAID) + "<think>\n\n</think>\n\n", {"enable_thinking": False}),
}


def chatting(template: str | None, special: bool = False) -> OpenedModel:
    """A random Qwen3 of one layer with byte-level tokens and this template; ``special``: the marks of reasoning are special tokens."""
    words = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), unk_token="<unk>", pad_token="<pad>", eos_token="</s>", bos_token="<|bot|>",
        additional_special_tokens=MARKS, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    marks = [AddedToken(mark, special=special) for mark in ("<think>", "</think>")]
    words.add_tokens(marks, special_tokens=special)
    words.chat_template = template
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(
        vocab_size=len(words), head_dim=8, num_key_value_heads=2, max_position_embeddings=1024, **small
    )
    return OpenedModel(adopt(Qwen3ForCausalLM(config).eval()), HuggingfaceFamily(config, words), "a small Qwen3")
