"""EVA as T5: a folder that plain transformers loads, without hanmo, and that gives the same logits.

EVA is a T5 v1.1 in form. T5 never scales its attention scores, so EVA 2.0's scale is folded into the queries.
Source: the recorded specification of thu-coai/EVA, section 13.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, T5Config

from hanmo.families.eva import legacy, tokenization
from hanmo.families.eva.modeling import EvaConfig, EvaModel
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.families.tables import expand

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
        text = path.parent.parent.joinpath(f"{match[1]}.py").read_text(encoding="utf-8")
        return text.replace("from __future__ import annotations\n", "")

    return re.sub(r"from hanmo\.families\.(\w+) import .*\n", inlined, path.read_text(encoding="utf-8"))


def export_t5(network: EvaModel, tokenizer: EvaTokenizer, folder: Path, dtype: torch.dtype) -> list[str]:
    """Write T5ForConditionalGeneration with EVA's weights, and the tokenizer with its code.

    Folding happens in fp32, and only its result is rounded to ``dtype``.

    Returns:
        Remarks: what was left out, what rounding lost.
    """
    state, worst = {}, 0.0
    for name, weight in _t5_tensors(network).items():
        state[name] = weight.to(dtype).contiguous()
        worst = max(worst, float((state[name].float() - weight).abs().max()))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _write_config(network.config, folder, dtype)
    tokenizer.save_pretrained(folder)
    (folder / "tokenization.py").write_text(standalone(Path(tokenization.__file__)), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8"))
    said["auto_map"] = {"AutoTokenizer": ["tokenization.EvaTokenizer", None]}
    settings.write_text(json.dumps(said, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README.format(name=folder.name), encoding="utf-8")
    notes = ["the role embeddings have no place in T5 and are left out; no published program uses them"]
    if worst:
        notes.append(
            f"{str(dtype).removeprefix('torch.')} rounds the weights, the folded queries among them, by up to {worst:.1e}; "
            "fp32 gives the logits to about 1e-5"
        )
    return notes


def _t5_tensors(network: EvaModel) -> dict[str, Tensor]:
    """The weights in fp32 under T5's names, which are those of EVA's hub layout, with the scale in the queries."""
    weights = network.state_dict()
    config = network.config
    scale = config.d_kv**-0.5 if config.attn_scale else 1.0
    counts = SimpleNamespace(num_layers=config.num_layers, num_decoder_layers=config.num_decoder_layers)
    hub = next(layout for layout in legacy.LAYOUTS if layout.container == "bin")
    tensors = {}
    for entry in expand(hub.entries, counts):
        (ours,) = entry.ours
        if ours != "role_embeds.weight":
            weight = weights[ours].detach().cpu().float()
            tensors[entry.theirs] = weight * scale if ours.endswith("q_proj.weight") else weight
    return tensors


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
