"""Model folders that bring Python of their own. Where any of it runs, or is asked about, a test sees it."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.unit.transformers_models import tokenizer

# Language models without a tokenizer of their own in transformers, for which it would take the folder's.
TYPES = (
    *("llama", "bloom", "falcon", "gpt_oss", "deepseek_v3", "apertus", "arcee", "bitnet", "cwm", "diffllama", "doge"),
    *("exaone4", "flint", "granite_swa", "helium", "hunyuan_v1_dense", "jetmoe", "lfm2", "nanochat", "seed_oss"),
    *("smollm3", "vaultgemma", "longt5"),
)
# Models of transformers that are no language models, and one that it does not know.
OTHERS = ("encodec", "dac", "pvt", "time_series_transformer", "nobodys_model")
_SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8},
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 48, "num_key_value_heads": 4, "num_kv_heads": 2},
    **{"max_position_embeddings": 256, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 3},
    **{"n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
    },
    **{"v_head_dim": 8, "decoder_start_token_id": 1},
}
_AUTO = (
    *("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoTokenizer", "AutoProcessor"),
    "AutoImageProcessor",
)
_KINDS = {"AutoTokenizer": ["own.Own", "own.Own"], **{name: "own.Own" for name in _AUTO if name != "AutoTokenizer"}}


class Listening(io.TextIOWrapper):
    """Standard input that says yes to everything, and remembers whether it was asked."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(b"y\n" * 20), encoding="utf-8")

    @property
    def asked(self) -> bool:
        return self.buffer.tell() > 0


def canary(folder: Path) -> Path:
    """What exists when something of an armed folder was run."""
    return folder / "something_ran"


def arm(folder: Path, tokenizer_class: str | None = "OwnTokenizer", **config: Any) -> Path:
    """Give a model folder code of its own and name it wherever transformers looks.

    Args:
        tokenizer_class: that the folder names; one that transformers lacks makes it need the folder's.
        config: changes of config.json.
    """
    code = f"import pathlib\npathlib.Path({str(canary(folder))!r}).touch()\n\n\nclass Own:\n    pass\n"
    for name in ("own.py", "__init__.py", "custom_generate/generate.py", "own_tokenizer/own.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code, encoding="utf-8")
    _change(folder / "config.json", {"auto_map": _KINDS, "custom_pipelines": {"talk": {"impl": "own.Own"}}, **config})
    _change(folder / "generation_config.json", {"custom_generate": str(folder)})
    _change(folder / "tokenizer_config.json", {"auto_map": _KINDS, "tokenizer_class": tokenizer_class})
    return folder


def write(model_type: str, folder: Path) -> Path:
    """A small model of a type, with random weights, as transformers would write it."""
    folder.mkdir(parents=True)
    words = tokenizer()
    if model_type in OTHERS:  # no text goes in or out: what is in the weights does not matter
        _change(folder / "config.json", {"model_type": model_type})
        save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sizes = {key: value for key, value in _SIZES.items() if (model_type, key) != ("falcon", "head_dim")}
            config = AutoConfig.for_model(model_type, vocab_size=len(words), **sizes)
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            auto.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _change(file: Path, changes: dict[str, Any]) -> None:
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**said, **changes}), encoding="utf-8")
