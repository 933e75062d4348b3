"""DeepSpeed configurations of any age, brought up to date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# old key of the zero_optimization section -> its new one
_RENAMED = {
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "allgather_size": "allgather_bucket_size",
}
_DROPPED = ("disable_allgather", "legacy_stage1", "elastic_checkpoint_legacy")
_OURS = {  # what transformers' Trainer has a setting for; both must agree, so ours decides
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}


def translate_deepspeed(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A DeepSpeed configuration of any age as today's.

    Returns:
        The configuration; settings of the trainer that it decides; a notice for each thing changed.
    """
    config: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    notices, settings = [], {}
    zero = config.get("zero_optimization", {})
    if isinstance(zero, bool):
        zero = config["zero_optimization"] = {"stage": int(zero)}
        notices.append(f"zero_optimization: {str(bool(zero['stage'])).lower()} is now a stage: {zero['stage']}")
    for old, device in (("cpu_offload", "offload_optimizer"), ("cpu_offload_params", "offload_param")):
        if old in zero:
            wanted = zero.pop(old)
            if wanted and device not in zero:
                zero[device] = {"device": "cpu", "pin_memory": bool(zero.get("cpu_offload_use_pin_memory", False))}
            notices.append(f"zero_optimization.{old} is now {device}" + ("" if wanted else ", which is left out"))
    zero.pop("cpu_offload_use_pin_memory", None)
    for old, new in _RENAMED.items():
        if old in zero:
            zero.setdefault(new, zero.pop(old))
            notices.append(f"zero_optimization.{old} is now {new}")
    for old in _DROPPED:
        if old in zero:
            del zero[old]
            notices.append(f"zero_optimization.{old} has no meaning any more and is left out")
    for theirs, ours in _OURS.items():
        config.setdefault(theirs, "auto")  # DeepSpeed's own defaults are none, 1 and no clipping
        if config[theirs] != "auto":
            settings[ours] = config[theirs]
            config[theirs] = "auto"
            notices.append(f"{theirs} is given by trainer.{ours}={settings[ours]}")
    if config.get("train_batch_size", "auto") != "auto":
        config["train_batch_size"] = "auto"
        notices.append("train_batch_size follows from the batch of a process, the accumulation and the processes")
    for precision in ("fp16", "bf16"):
        if (section := config.get(precision)) and section.get("enabled", "auto") != "auto":
            settings[precision] = bool(section["enabled"])
    return config, settings, notices
