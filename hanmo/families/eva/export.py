"""EVA as T5: a folder that plain transformers loads, without hanmo, and that gives the same logits.

EVA is a T5 v1.1 in form. T5 never scales its attention scores, so EVA 2.0's scale is folded into the queries.
Source: the recorded specification of thu-coai/EVA, section 13.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, T5Config

from hanmo.families.eva import original_format, tokenization
from hanmo.families.eva.modeling import EvaConfig
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.families.weight_map import expand

MAX_DISTANCE = 128  # of the relative positions; fixed in EVA, a setting in T5

_README = """# {name}: EVA as T5

    from transformers import AutoTokenizer, T5ForConditionalGeneration
    tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)  # runs tokenization.py of this folder
    model = T5ForConditionalGeneration.from_pretrained(".")
    inputs = tokenizer("你好", "", return_tensors="pt")  # one turn: its ids, <sep>, <s_0>
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))

Of several turns, each ends with `<sep>` and the last with `<sep><s_0>`. EVA's score rules are not part of T5.
"""


def standalone(path: Path) -> str:
    """The text of a module with the texts of the modules of hanmo it imports in place of the imports."""

    def inlined(match: re.Match[str]) -> str:
        text = (path.parents[2] / "tokenizers" / f"{match[1]}.py").read_text(encoding="utf-8")
        return text.replace("from __future__ import annotations\n", "")

    return re.sub(r"from hanmo\.tokenizers\.(\w+) import .*\n", inlined, path.read_text(encoding="utf-8"))


def write_t5(config: EvaConfig, tokenizer: EvaTokenizer, folder: Path, dtype: torch.dtype) -> list[str]:
    """Write what T5ForConditionalGeneration needs beside EVA's weights, and the tokenizer with its code.

    Returns:
        Remarks: what was left out, what rounding loses.
    """
    _write_config(config, folder, dtype)
    tokenizer.save_pretrained(folder)
    (folder / "tokenization.py").write_text(standalone(Path(tokenization.__file__)), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    said["auto_map"] = {"AutoTokenizer": ["tokenization.EvaTokenizer", None]}
    settings.write_text(json.dumps(said, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README.format(name=folder.name), encoding="utf-8")
    notes = ["the role embeddings have no place in T5 and are left out; no published program uses them"]
    if dtype != torch.float32 and config.attn_scale:
        notes.append("the queries, with the scale in them, are rounded; fp32 gives the logits to about 1e-5")
    return notes


def t5_tensors(config: EvaConfig) -> dict[str, tuple[str, float]]:
    """T5's names, which are those of EVA's hub layout: ours, and what it is multiplied with, the scale for queries."""
    scale = config.d_kv**-0.5 if config.attn_scale else 1.0
    hub = next(layout for layout in original_format.LAYOUTS if layout.container == "bin")
    return {
        entry.theirs: (ours, scale if ours.endswith("q_proj.weight") else 1.0)
        for entry in expand(hub.entries, config)
        for ours in entry.ours
        if ours != "role_embeds.weight"
    }


def _write_config(config: EvaConfig, folder: Path, dtype: torch.dtype) -> None:
    same = ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads"]
    same += ["relative_attention_num_buckets", "dropout_rate", "layer_norm_epsilon"]
    ids = {name: getattr(config, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    said: dict[str, Any] = {name: getattr(config, name) for name in same} | ids
    said |= {
        "relative_attention_max_distance": MAX_DISTANCE,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    t5 = T5Config(**said)
    # T5Config sets this to True whatever it is given; with it the head would be tied and the model ruined.
    t5.tie_word_embeddings = False
    t5.architectures = ["T5ForConditionalGeneration"]
    t5.dtype = dtype
    t5.save_pretrained(folder)
    GenerationConfig(bos_token_id=config.decoder_start_token_id, **ids).save_pretrained(folder)
