"""A model whose tokens are characters, and small examinations in the published layouts."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hanmo.evaluation.suites.exam.suite import Exam
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def one_token_a_character(texts: Iterable[str], chat: bool = False) -> OpenedModel:
    """A random GPT-2 of one layer over the characters of the texts and of ASCII; ``</s>`` ends a text or a turn."""
    characters = sorted({*map(chr, range(32, 127)), "\n", *(one for text in texts for one in text)})
    ids = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *characters])}
    words = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = Split("", "isolated")
    words.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False, **special)
    if chat:
        tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(ids), n_embd=32, n_layer=1, n_head=2, n_positions=2048, eos_token_id=1)
    return OpenedModel(adopt(GPT2LMHeadModel(config).eval()), HuggingfaceFamily(config, tokenizer), "characters")


def exam_folder(exam: Exam, folder: Path, header: str, subjects: Iterable[str], answered: bool = True) -> Path:
    """Three questions of each subject and five examples, under the header (none where that is empty).

    Args:
        answered: the questions have a column of answers, as the examples have in any case.
    """
    for split, count in ((exam.splits[0], 3), (exam.splits[-1], 3), ("dev", 5)):
        for subject in subjects:
            path = folder / exam.files.format(split=split, subject=subject)
            path.parent.mkdir(parents=True, exist_ok=True)
            known = answered or split == "dev"
            lines = [header if known else header.rpartition(",")[0]] if header else []
            for number in range(count):
                number_column = f"{number}," if header else ""
                answer = f",{'ABCD'[number % 4]}" if known else ""
                lines.append(f'{number_column}"{subject} {split} {number}, which?",None,N/A,1,{number}{answer}')
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
