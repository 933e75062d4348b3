"""The one door through which transformers reads a folder. Nothing that lies in the folder is ever run.

A folder of a model may bring Python of its own (``auto_map``), name kernels that are downloaded and run, or bring an
adapter whose base is taken from a hub. transformers follows some of this by itself, and for some of it asks on the
console, where it takes the first line of standard input for the answer. Here its questions are off, files are local
ones, and what a configuration may decide is cut down to data. tests/unit/test_nothing_runs.py sees to it that no other
module of hanmo calls ``from_pretrained`` or ``from_config``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, dynamic_module_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, tokenizer_class_from_name
from transformers.utils import CONFIG_NAME

from hanmo.errors import CheckpointError, HanmoError, UnsupportedError, VocabularyError
from hanmo.families.untrusted import check_tokenizer
from hanmo.files import plain_name, read_json

TOKENIZER_CONFIG, ADAPTER_CONFIG = "tokenizer_config.json", "adapter_config.json"

# Where code lies. transformers' own classes are taken instead, so nothing changes by leaving these out.
_CODE = {"auto_map", "_auto_class", "custom_pipelines", "custom_generate", "trust_remote_code"}
# What makes transformers take weights, settings or parts of the network from somewhere else.
_ELSEWHERE = {
    "allow_all_kernels",
    "configuration_files",
    "distributed_config",
    "fusion_config",
    "gguf_file",
    "kernel_config",
    "transformers_weights",
    "use_kernels",
    "use_pretrained_backbone",
}
# What a file may choose where transformers takes any other value for a kernel, and downloads it.
_CHOICES = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
_PARTS = ("architecture", "backbone")  # names of timm's models, or of repositories
_BAD_FOLDER = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    ArithmeticError,
    RecursionError,
)


def is_known_type(model_type: object) -> bool:
    """Whether transformers has networks of its own for a model_type."""
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def safe_config(folder: str | Path, config_class: type[PretrainedConfig] = PretrainedConfig) -> PretrainedConfig:
    """The configuration in a folder, without what would run or fetch something; what is left out is said once.

    Args:
        config_class: PretrainedConfig stands for the class of the folder's model_type.

    Raises:
        CheckpointError: no configuration, or one that its class does not take.
        UnsupportedError: the model needs code of its own.
    """
    file = Path(folder) / CONFIG_NAME
    said = read_json(file)
    auto: Any = config_class
    if config_class is PretrainedConfig:
        if not is_known_type(said.get("model_type")):
            unknown = f"{file}: model type {said.get('model_type')!r} is none that the installed transformers knows"
            raise UnsupportedError(own_code(folder, said) or unknown)
        auto = AutoConfig
    with tempfile.TemporaryDirectory() as alone, _asking_nothing(), _one_message(file, "not a configuration"):
        said = _as_data(said, str(file))
        # By itself, so that no file beside it can take part.
        (Path(alone) / CONFIG_NAME).write_text(json.dumps(said), encoding="utf-8")
        config = auto.from_pretrained(alone, trust_remote_code=False, local_files_only=True)
    config._name_or_path = str(folder)
    return config


def safe_network(
    network_class: Any, folder: str | Path | None, config: PretrainedConfig, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A network, and what was missing or left over when it was filled.

    Args:
        network_class: a class of ours, or an auto class of transformers.
        folder: of the weights; None if ``options`` have them as ``state_dict``.
        config: as ``safe_config`` gives it.
        options: as ``from_pretrained`` takes them.

    Raises:
        CheckpointError: transformers cannot open it; an adapter lies beside the model.
    """
    if folder is not None:
        check_adapter(folder)
    with _asking_nothing(), _one_message(folder, "transformers cannot open it"):
        options |= {"trust_remote_code": False, "local_files_only": True, "output_loading_info": True}
        return network_class.from_pretrained(folder, config=config, **options)


def check_adapter(folder: str | Path) -> None:
    """CheckpointError where an adapter lies beside a model: transformers would apply it, and fetch the base it names."""
    if (adapter := Path(folder) / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{adapter}: an adapter beside a model, which hanmo does not apply; merge it into the model with peft "
            f"(merge_and_unload), or take {ADAPTER_CONFIG} away to open the model without it"
        )


def safe_blank(auto_class: Any, folder: str | Path, config: PretrainedConfig) -> Any:
    """The network of transformers that a configuration describes, on the meta device: its weights take no memory.

    Raises:
        CheckpointError: transformers cannot build it.
    """
    with torch.device("meta"), _asking_nothing(), _one_message(folder, "transformers cannot build it"):
        return auto_class.from_config(config, trust_remote_code=False)


def safe_tokenizer(folder: str | Path, tokenizer_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Args:
        tokenizer_class: a class of ours, or AutoTokenizer for the one of transformers that the folder names.

    Raises:
        VocabularyError: none there, or one that does not open.
        CheckpointError: it takes more memory or time than any honest one.
        UnsupportedError: it needs code of its own.
    """
    folder = Path(folder)
    about = folder / TOKENIZER_CONFIG
    said = read_json(about) if about.is_file() else {}
    _check_places(about, said)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if tokenizer_class is AutoTokenizer:
        options["config"] = _config_beside(folder)
        _check_class(about, said, options["config"])

    def opened() -> PreTrainedTokenizerBase:
        with _asking_nothing(), _one_message(folder, "its tokenizer does not open", VocabularyError):
            return tokenizer_class.from_pretrained(str(folder), **options)

    check_tokenizer(folder, opened)
    tokenizer = opened()
    tokenizer.init_kwargs.pop("auto_map", None)  # or it would be written into folders without that code
    return tokenizer


def own_code(folder: str | Path, config: Mapping[str, Any]) -> str:
    """What to say where transformers has no class for the content of a config.json: that of the folder is never run.

    Empty if the folder names none either.
    """
    if not config.get("auto_map"):
        return ""
    return _refusal(folder, f"the model type {config.get('model_type')!r}", config["auto_map"])


@contextlib.contextmanager
def _asking_nothing() -> Iterator[None]:
    """No question on the console: without time for an answer, transformers refuses what it would have asked about."""
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


@contextlib.contextmanager
def _one_message(where: object, problem: str, kind: type[HanmoError] = CheckpointError) -> Iterator[None]:
    """What transformers trips over in a folder, as one message."""
    try:
        yield
    except HanmoError:
        raise
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, _BAD_FOLDER):  # tokenizers raises no other kind
            raise
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise kind(f"{where}: {problem}: {said}") from error


def _as_data(said: dict[str, Any], file: str) -> dict[str, Any]:
    """A configuration without what names code, kernels or files; in every part of it, for parts are models too."""
    kept = {}
    for key, value in said.items():
        choice = key.removeprefix("_").removesuffix("_internal")
        if key in _CODE:
            continue
        if key in _ELSEWHERE and value:
            _say(f"{file}: {key} is not followed: it would bring in what is not part of this folder's model")
        elif choice in _CHOICES:
            kept[key] = _chosen(value, choice, file)
        elif key in _PARTS and isinstance(value, str) and set(value) & set("/:"):
            _say(f"{file}: {key} {value!r} is not followed: it would be downloaded")
        else:
            kept[key] = _part(value, file)
    return kept


def _part(value: Any, file: str) -> Any:
    if isinstance(value, dict):
        return _as_data(value, file)
    return [_part(one, file) for one in value] if isinstance(value, list) else value


def _chosen(value: Any, choice: str, file: str) -> Any:
    """The implementation that a file chooses, or None; of a model of several parts, one for each."""
    if isinstance(value, dict):
        return {part: _chosen(one, choice, file) for part, one in value.items()}
    if value is None or value in _CHOICES[choice]:
        return value
    _say(f"{file}: {choice} {value!r} is not followed: a file may choose {', '.join(_CHOICES[choice])}")
    return None


@functools.cache
def _say(remark: str) -> None:
    """Once, for a command reads a configuration several times."""
    print(f"hanmo: {remark}", file=sys.stderr)


def _config_beside(folder: Path) -> PretrainedConfig:
    """For the choice of a tokenizer: the model's configuration, or an empty one where it has none that is known."""
    file = folder / CONFIG_NAME
    known = file.is_file() and is_known_type(read_json(file).get("model_type"))
    return safe_config(folder) if known else PretrainedConfig()


def _check_places(about: Path, said: dict[str, Any]) -> None:
    """A tokenizer's settings are no way to files outside its folder."""
    for key in ("init_inputs", "gguf_file", "tokenizer_object"):
        if said.get(key):
            raise VocabularyError(f"{about}: {key} is {said[key]!r}: hanmo reads a tokenizer from its own files alone")
    for name in said.get("fast_tokenizer_files") or ():
        plain_name(name, about)


def _check_class(about: Path, said: dict[str, Any], config: PretrainedConfig) -> None:
    """The class that the folder names must be a tokenizer of transformers, for any class of that name would be taken."""
    known = type(config) in TOKENIZER_MAPPING
    for name in (said.get("tokenizer_class"), getattr(config, "tokenizer_class", None)):
        if name is None:
            continue
        found = tokenizer_class_from_name(name) if isinstance(name, str) else name
        known = known or found is not None
        if found is not None and not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
            raise VocabularyError(f"{about.parent}: names {name!r} as its tokenizer, which is none of transformers'")
    if "auto_map" in said and not known:
        raise UnsupportedError(_refusal(about.parent, "its tokenizer", said["auto_map"]))


def _refusal(folder: str | Path, what: str, auto_map: Any) -> str:
    files = _files_of(auto_map)
    named = f" ({', '.join(files[:4])})" if files else ""
    return (
        f"{folder}: {what} needs the folder's own code{named}, which hanmo never runs; take a version of this model that "
        "transformers opens by itself (made for a newer transformers, often named -hf), or make one with its makers' tools"
    )


def _files_of(auto_map: Any) -> list[str]:
    """The modules that an auto_map names, as files."""
    listed = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    names = [name for one in listed for name in (one if isinstance(one, list) else [one]) if isinstance(name, str)]
    return sorted({f"{name.split('--')[-1].split('.')[0]}.py" for name in names})
