"""Exports EVA as T5: a folder that plain transformers loads without hanmo, with the same logits.

EVA has the form of T5 v1.1. T5 never scales its attention scores, so EVA 2.0's scale is folded into the queries.
Source: the recorded specification of thu-coai/EVA, section 13.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, T5Config

from hanmo import tokenizers
from hanmo.families.eva import original_format, tokenization
from hanmo.families.eva.biases import MAX_DISTANCE
from hanmo.families.eva.modeling import EvaConfig
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.families.weight_map import expand
from hanmo.files import json_text

_SAME_SETTINGS = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads"),
    *("relative_attention_num_buckets", "dropout_rate", "layer_norm_epsilon", "tie_word_embeddings"),
)
_FUTURE = "from __future__ import annotations\n"
_README = """# EVA as T5

    from transformers import AutoTokenizer, T5ForConditionalGeneration
    tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)  # runs tokenization.py of this folder
    model = T5ForConditionalGeneration.from_pretrained(".")
    inputs = tokenizer("你好", "", return_tensors="pt")  # one turn: its ids, <sep>, <s_0>
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))

Of several turns, each ends with `<sep>` and the last with `<sep><s_0>`. EVA's score rules are not part of T5.
"""


def standalone(path: Path) -> str:
    """The source of a module, with imports from ``hanmo.tokenizers`` replaced by the source of those modules."""
    inlined: set[str] = set()

    def inline(match: re.Match[str]) -> str:
        name = match[1]
        if name in inlined:
            return ""
        inlined.add(name)
        return read(Path(tokenizers.__file__).with_name(f"{name}.py"))

    def read(file: Path) -> str:
        text = file.read_text(encoding="utf-8").replace(_FUTURE, "")
        return re.sub(r"from hanmo\.tokenizers\.(\w+) import .*\n", inline, text)

    return _FUTURE + read(path)  # once for all modules: it may only stand at the beginning


def write_t5(config: EvaConfig, tokenizer: EvaTokenizer, folder: Path, dtype: torch.dtype) -> list[str]:
    """Write everything that T5 needs beside weights, and the tokenizer with its code; returns remarks on what is lost."""
    _write_config(config, folder, dtype)
    tokenizer.save_pretrained(folder)
    (folder / "tokenization.py").write_text(standalone(Path(tokenization.__file__)), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    content["auto_map"] = {"AutoTokenizer": ["tokenization.EvaTokenizer", None]}
    settings.write_text(json_text(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README, encoding="utf-8")
    notes = ["the role embeddings have no place in T5 and are left out; no published program uses them"]
    if dtype != torch.float32 and config.attn_scale:
        notes.append("the queries, with the scale in them, are rounded; fp32 gives the logits to about 1e-5")
    return notes


def t5_tensors(config: EvaConfig) -> dict[str, tuple[str, float]]:
    """By T5's names, which are those of EVA's hub layout: the name of ours and its factor, the scale for queries."""
    scale = config.d_kv**-0.5 if config.attn_scale else 1.0
    hub = next(layout for layout in original_format.LAYOUTS if layout.container == "bin")
    return {
        entry.theirs: (ours, scale if ours.endswith("q_proj.weight") else 1.0)
        for entry in expand(hub.entries, config)
        for ours in entry.ours
        if ours != "role_embeds.weight"
    }


def _write_config(config: EvaConfig, folder: Path, dtype: torch.dtype) -> None:
    ids = {name: getattr(config, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    sizes: dict[str, Any] = {name: getattr(config, name) for name in _SAME_SETTINGS}
    t5 = T5Config(**sizes, **ids, relative_attention_max_distance=MAX_DISTANCE, feed_forward_proj="gated-gelu")
    # T5Config sets this to True whatever its argument; the head would then be tied and the model ruined.
    t5.tie_word_embeddings = False
    t5.architectures = ["T5ForConditionalGeneration"]
    t5.dtype = dtype
    t5.save_pretrained(folder)
    GenerationConfig(bos_token_id=config.decoder_start_token_id, **ids).save_pretrained(folder)
