"""Tensor-parallel plans of transformers models: transformers' own, and ours for T5."""

from dataclasses import replace
from typing import Any

from hanmo.errors import UnsupportedError
from hanmo.nn.tensor_parallel import AS_CUT, IN_HEADS, OUT_HEADS, VOCABULARY_ROWS, WHOLE_LOGITS

T5_FORM = ("t5", "mt5")


def with_plan(wanted: Any, config: Any) -> Any:
    """The distributed configuration, with our plan if transformers has none; UnsupportedError if neither has one."""
    if config.get_text_config().base_model_tp_plan:
        return wanted
    if config.model_type not in T5_FORM:
        raise UnsupportedError(
            f"transformers does not know how to cut {config.model_type} models over several ranks; "
            "leave out --tensor-parallel"
        )
    return replace(wanted, tp_plan=_t5_plan(config))


def settle_heads(model: Any, ranks: int) -> None:
    """Set the number of heads of T5's attention, from which it builds its position bias, to the rank's share."""
    if model.config.model_type in T5_FORM:
        for module in model.modules():
            if hasattr(module, "has_relative_attention_bias"):
                module.n_heads //= ranks


def _t5_plan(config: Any) -> dict[str, str]:
    inner = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
    plan = {"shared": VOCABULARY_ROWS, "lm_head": WHOLE_LOGITS}
    for stack in ("encoder", "decoder"):
        layer = f"{stack}.block.*.layer.*"
        plan[f"{stack}.embed_tokens"] = VOCABULARY_ROWS
        plan |= {f"{layer}.DenseReluDense.{name}": OUT_HEADS for name in inner}
        plan[f"{layer}.DenseReluDense.wo"] = IN_HEADS
        for attention in ("SelfAttention", "EncDecAttention")[: 1 + (stack == "decoder")]:
            plan |= {f"{layer}.{attention}.{name}": OUT_HEADS for name in "qkv"}
            plan[f"{layer}.{attention}.o"] = IN_HEADS
        plan[f"{layer}.SelfAttention.relative_attention_bias"] = AS_CUT
        plan[f"{layer}.SelfAttention.relative_attention_bias.weight"] = IN_HEADS  # a column for each head
    return plan
