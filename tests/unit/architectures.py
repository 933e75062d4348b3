"""Small models of many transformers architectures, and what plain transformers says of one text at a time."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt

SIZE, PAD, STOP, START = 80, 1, 2, 3
# By whatever name a configuration has them; those it does not know are left out.
_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("n_layer", "n_layers", "num_hidden_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "dff", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("n_positions", "n_ctx", "max_position_embeddings", "max_seq_len"), 128),
    **dict.fromkeys(("encoder_max_position_embeddings",), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout"), 0.0),
    "vocab_size": SIZE, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "rotary_dim": 4, "state_size": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "attention_window": 8, "sliding_window": 6,
    "pad_token_id": PAD, "eos_token_id": STOP, "bos_token_id": START, "decoder_start_token_id": START,
    "tie_word_embeddings": False,
}  # fmt: skip
_MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
}  # fmt: skip
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
ENCODERS_AND_DECODERS: dict[str, dict[str, Any]] = {
    "bart": {}, "mbart": {}, "m2m_100": {}, "pegasus": {}, "marian": {}, "blenderbot": {}, "blenderbot-small": {},
    "plbart": {}, "mvp": {}, "t5": {}, "mt5": {}, "umt5": {},
    "led": {"max_encoder_position_embeddings": 128, "max_decoder_position_embeddings": 128},
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 1},
    "longt5": {"local_radius": 4, "encoder_attention_type": "local"},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 2},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 4},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 4},
    "fsmt": {"langs": ["a", "b"], "src_vocab_size": SIZE, "tgt_vocab_size": SIZE},
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    **{name: {} for name in (
        "gpt2", "gptj", "gpt_neox", "gpt_bigcode", "codegen", "opt", "xglm", "biogpt", "ctrl", "bloom", "mpt",
        "openai-gpt", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "glm4", "phi", "olmo2", "olmoe",
        "stablelm", "starcoder2", "granite", "cohere2", "gpt_oss", "mamba", "falcon_mamba",
    )},
    "gemma2": {"query_pre_attn_scalar": 8}, "gemma3_text": {"query_pre_attn_scalar": 8},
    **{name: {"is_decoder": True} for name in ("bert", "roberta", "roformer", "rembert")},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6, "attention_layers": None},
    "deepseek_v3": {
        "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "n_shared_experts": 1,
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "recurrent_gemma": {
        "lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"],
    },
    "jamba": {
        "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "use_mamba_kernels": False,
    },
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "qwen3_next": {**_LINEAR, "shared_expert_intermediate_size": 24},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "block_multiple_of": 8},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "llama4_text": {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "local"], "axial_pos_embds": False, "local_attn_chunk_length": 4,
    },
}  # fmt: skip
BOTH = ENCODERS_AND_DECODERS | DECODERS
SEES_AHEAD = ("bert", "xlnet", "xlm", "cpmant")  # as they come: not made for decoding


def build(name: str, **changes: Any) -> Any:
    """A plain model with random weights far from zero, so that predictions differ from place to place."""
    config_class = CONFIG_MAPPING[name]
    usual = config_class()
    known = {key: value for key, value in _SETTINGS.items() if hasattr(usual, key)}
    if name == "xlnet":  # whose configuration refuses any number of positions
        known.pop("max_position_embeddings")
    if getattr(usual, "sliding_window", None) is None:
        known.pop("sliding_window", None)
    chosen = {**known, **BOTH.get(name, {}), **changes}
    config = config_class(**{key: value for key, value in chosen.items() if value is not None})
    if config.is_encoder_decoder:
        config.decoder_start_token_id = START  # not every configuration knows it until it is set
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3, generator=generator)
    model.generation_config = GenerationConfig(eos_token_id=STOP, pad_token_id=PAD, decoder_start_token_id=START)
    return model


class _Family(HuggingfaceFamily):
    stop_ids = (STOP,)  # type: ignore[assignment]
    unused_ids = range(0)  # type: ignore[assignment]


def adopted(model: Any) -> OpenedModel:
    """A copy of the model as ours; there is no text here, and so no tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = adopt(copy.deepcopy(model))
    return OpenedModel(network, _Family(network.config, None), type(model).__name__)  # type: ignore[arg-type]


def said(model: Any, prompt: Sequence[int], beams: int, count: int) -> tuple[int, ...]:
    """What plain transformers says after one prompt, reading the whole of a text for every token.

    It is told ids alone, so that it counts positions as in its own forward.
    """
    plain, encodes = copy.deepcopy(model), model.config.is_encoder_decoder

    def whole(input_ids: Tensor, attention_mask: Any = None, **_: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "use_cache": False}

    if not encodes:
        plain.prepare_inputs_for_generation = whole
    ids = torch.tensor([prompt])
    cached = encodes and not hasattr(model.config, "expert_capacity")
    settings = {"do_sample": False, "num_beams": beams, "max_new_tokens": count, "use_cache": cached}
    found = plain.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, 1 if encodes else len(prompt) :]
    words = found.tolist()
    return tuple(words[: words.index(STOP)] if STOP in words else words)


@torch.no_grad()
def logprobs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """log p of every token of an answer, by plain transformers from one look at the whole."""
    plain = copy.deepcopy(model)
    if model.config.is_encoder_decoder:
        fed = torch.tensor([[START, *answer[:-1]]])
        logits = plain(input_ids=torch.tensor([prompt]), decoder_input_ids=fed, use_cache=False).logits[0]
    else:
        logits = plain(input_ids=torch.tensor([[*prompt, *answer[:-1]]]), use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.log_softmax(-1)[range(len(answer)), list(answer)]
