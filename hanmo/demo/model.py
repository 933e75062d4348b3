"""The demo's model: a vocabulary from the corpus and a small EVA with fresh weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hanmo import families
from hanmo.data.prepare import vocabulary
from hanmo.families.base import OpenedModel
from hanmo.files import package_yaml, write_text
from hanmo.records import Dialogue

SETTINGS: dict[str, Any] = package_yaml("hanmo.demo", "settings.yaml")
DECODING = SETTINGS["decoding"]
LIMIT = 128  # tokens of the context, as in chats
WORDS = 900
NUMERALS = "零一二三四五六七八九十百"  # one token each, so that the model can add numbers that it has never seen


def new_model(dialogues: Sequence[Dialogue], folder: Path, seed: int) -> OpenedModel:
    """An untrained model; its vocabulary file is written to ``folder``."""
    family: Any = families.load("eva")
    texts = (turn for dialogue in dialogues for turn in dialogue.turns)
    tokens = vocabulary.build(texts, words=WORDS, min_count=30, apart=NUMERALS)
    write_text(folder / "vocab.txt", "".join(f"{token}\n" for token in tokens))
    tokenizer = family.tokenizer_class(vocab_file=str(folder / "vocab.txt"))
    config = family.config_class(vocab_size=len(tokens), initializer_range=0.05, decoding=DECODING, **SETTINGS["size"])
    torch.manual_seed(seed)
    network = family.network_class(config)
    start_aligned(network)
    return OpenedModel(network.eval(), family(config, tokenizer), "new")


def start_aligned(network: Any) -> None:
    """Fresh weights with which a model can repeat a word of the context almost from the start.

    The head begins in the directions of the embedding, and the decoder's cross-attention hands on what it looks at
    unchanged (its output projection undoes its value projection). Nothing is tied: the weights diverge in training.
    With plain random weights the same number of steps still confuses names, numbers and cities.
    """
    with torch.no_grad():
        network.word_embeds.weight.normal_(std=0.3)
        network.lm_head.weight.copy_(network.word_embeds.weight / 3)
        for block in network.decoder.blocks:
            torch.nn.init.orthogonal_(block.cross.v_proj.weight)
            block.cross.o_proj.weight.copy_(block.cross.v_proj.weight.T)
