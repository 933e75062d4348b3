"""The only module that lets transformers read a folder. Nothing in the folder is ever run.

A folder may hold Python code (``auto_map``), name kernels that transformers downloads and runs, or hold an adapter whose
base comes from a hub. transformers follows some of this and prompts the user about the rest. Here prompts are off,
only local files are read, and configurations lose the keys that name code or other places.
"""

import contextlib
import functools
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, dynamic_module_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, tokenizer_class_from_name
from transformers.utils import CONFIG_NAME

from hanmo.errors import CheckpointError, HanmoError, UnsupportedError, VocabularyError
from hanmo.families.untrusted import check_tokenizer
from hanmo.files import or_null, plain_name, read_json, write_text

TOKENIZER_CONFIG, ADAPTER_CONFIG = "tokenizer_config.json", "adapter_config.json"

# Keys that name code. They are removed silently: transformers' own classes are used instead.
_CODE = {"auto_map", "_auto_class", "custom_pipelines", "custom_generate", "trust_remote_code"}
# Keys that make transformers load weights, settings or parts of the network from elsewhere.
_ELSEWHERE = {"configuration_files", "distributed_config", "gguf_file", "transformers_weights"}
_ELSEWHERE |= {"allow_all_kernels", "fusion_config", "kernel_config", "use_kernels", "use_pretrained_backbone"}
# Allowed values; transformers treats any other value as the name of a kernel and downloads it.
_CHOICES = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
_PARTS = ("architecture", "backbone")  # names of timm's models, or of repositories
_BAD_FOLDER = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError),
    StrictDataclassError,  # from transformers' configurations
    *(AssertionError, RuntimeError),  # from torch's layers; from sentencepiece, and RecursionError
)


def is_known_type(model_type: object) -> bool:
    """Whether transformers itself has networks for a model_type."""
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def safe_config(
    folder: str | Path,
    config_class: type[PretrainedConfig] = PretrainedConfig,
    content: dict[str, Any] | None = None,
) -> PretrainedConfig:
    """The configuration of a folder without keys that would run or fetch something; each removed key is reported once.

    PretrainedConfig stands for the class of the folder's model_type; ``content`` is that of config.json if it is known.
    CheckpointError if the class refuses it, UnsupportedError if the model needs code of its own.
    """
    file = Path(folder) / CONFIG_NAME
    content = read_json(file) if content is None else content
    auto: Any = config_class
    if config_class is PretrainedConfig:
        if not is_known_type(content.get("model_type")):
            unknown = f"{file}: model type {content.get('model_type')!r} is none that the installed transformers knows"
            raise UnsupportedError(own_code(folder, content) or unknown)
        auto = AutoConfig
    with as_hanmo_error(file, "not a configuration"):
        content = _as_data(content, str(file))
    with tempfile.TemporaryDirectory() as alone:  # a folder of its own, so that transformers reads no other file
        write_text(Path(alone) / CONFIG_NAME, json.dumps(content))
        with _without_questions(), as_hanmo_error(file, "not a configuration"):
            config = auto.from_pretrained(alone, trust_remote_code=False, local_files_only=True)
    config._name_or_path = str(folder)
    return config


def safe_network(
    network_class: Any, folder: str | Path | None, config: PretrainedConfig, where: object = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A network and the loading info of ``from_pretrained``; ``options`` hold a ``state_dict`` if ``folder`` is None.

    ``where``: in messages; default: the folder.

    CheckpointError if transformers cannot open it, a tensor has another shape than configured, or there is an adapter.
    """
    where = where or folder
    if folder is not None:
        check_adapter(folder)
    # The loading information names mismatched tensors; transformers' own error names none.
    options |= {"trust_remote_code": False, "local_files_only": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _without_questions(), as_hanmo_error(where, "transformers cannot open it"):
        network, info = network_class.from_pretrained(folder, config=config, **options)
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        more = f", and {len(mismatched) - 1} more tensors do not fit" if len(mismatched) > 1 else ""
        raise CheckpointError(
            f"{where}: {name} has the shape {tuple(found)}, but {CONFIG_NAME} describes {tuple(expected)}{more}"
        )
    return network, info


def check_adapter(folder: str | Path) -> None:
    """Raise CheckpointError for an adapter beside a model: transformers would apply it and download the base it names."""
    if (adapter := Path(folder) / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{adapter}: an adapter beside a model, which is not applied unless it is named: move its files into a folder of "
            "their own and give that with --adapter, or take it away to open the model without it"
        )


def safe_blank(auto_class: Any, folder: str | Path, config: PretrainedConfig) -> Any:
    """The network that a configuration describes, without memory for its weights; CheckpointError if it cannot be built."""
    with torch.device("meta"), _without_questions(), as_hanmo_error(folder, "transformers cannot build it"):
        return auto_class.from_config(config, trust_remote_code=False)


def safe_tokenizer(
    folder: str | Path, tokenizer_class: Any, config: PretrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; AutoTokenizer stands for the class that the folder or its ``config`` names.

    Raises:
        VocabularyError: there is none, or it does not open.
        CheckpointError: it takes more memory or time than any legitimate one.
        UnsupportedError: it needs code of its own.
    """
    folder = Path(folder)
    about = folder / TOKENIZER_CONFIG
    content = read_json(about) if about.is_file() else {}
    _check_places(about, content)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if tokenizer_class is AutoTokenizer:
        if config is None:
            file = folder / CONFIG_NAME
            known = file.is_file() and is_known_type(read_json(file).get("model_type"))
            config = safe_config(folder) if known else PretrainedConfig()
        options["config"] = config
        _check_class(about, content, config)

    def opened() -> PreTrainedTokenizerBase:
        with _without_questions(), as_hanmo_error(folder, "its tokenizer does not open", VocabularyError):
            return tokenizer_class.from_pretrained(str(folder), **options)

    check_tokenizer(folder, content, opened)
    tokenizer = opened()
    tokenizer.init_kwargs.pop("auto_map", None)  # else it would be written into folders without that code
    tokenizer.init_kwargs.update(
        or_null({key: value for key, value in tokenizer.init_kwargs.items() if key in content})
    )
    return tokenizer


def own_code(folder: str | Path, config: Mapping[str, Any]) -> str:
    """The message for a config.json that transformers has no class for; empty if the folder names no code of its own."""
    named = config.get("auto_map")
    return _refusal(folder, f"the model type {config.get('model_type')!r}", named) if named else ""


@contextlib.contextmanager
def _without_questions() -> Iterator[None]:
    """Switch transformers' console questions off: with a timeout of 0 it refuses instead of asking."""
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


@contextlib.contextmanager
def as_hanmo_error(where: object, problem: str, kind: type[HanmoError] = CheckpointError) -> Iterator[None]:
    """Turn the errors that a bad folder causes in transformers into one HanmoError."""
    try:
        yield
    except (HanmoError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, _BAD_FOLDER):  # tokenizers raises plain Exceptions
            raise
        reason = re.sub(r":\n\s*", ": ", str(error).strip()).split("\n")[0] or type(error).__name__
        raise kind(f"{where}: {problem}: {reason}") from error


def _as_data(content: dict[str, Any], file: str) -> dict[str, Any]:
    """A configuration without keys that name code, kernels or files, in all its parts (sub-configurations)."""
    kept = {}
    for key, value in content.items():
        choice = key.removeprefix("_").removesuffix("_internal")
        if key in _CODE:
            continue
        if key in _ELSEWHERE and value:
            _warn(f"{file}: {key} is not followed: it would load something from outside this folder")
        elif choice in _CHOICES:
            kept[key] = _chosen(value, choice, file)
        elif key in _PARTS and isinstance(value, str) and set(value) & set("/:"):
            _warn(f"{file}: {key} {value!r} is not followed: it would be downloaded")
        else:
            kept[key] = _part(value, file)
    return kept


def _part(value: Any, file: str) -> Any:
    if isinstance(value, dict):
        return _as_data(value, file)
    return [_part(one, file) for one in value] if isinstance(value, list) else value


def _chosen(value: Any, choice: str, file: str) -> Any:
    """The implementation that a file chooses if it is allowed, else None; of a model of several parts, one for each."""
    if isinstance(value, dict):
        return {part: _chosen(one, choice, file) for part, one in value.items()}
    if value is None or value in _CHOICES[choice]:
        return value
    _warn(f"{file}: {choice} {value!r} is not followed: a file may choose {', '.join(_CHOICES[choice])}")
    return None


@functools.cache
def _warn(remark: str) -> None:
    """Print a remark only once, even if a command reads several configurations."""
    print(f"hanmo: {remark}", file=sys.stderr)


def _check_places(about: Path, content: dict[str, Any]) -> None:
    """Check that a tokenizer's settings name no files outside its folder."""
    for key in ("init_inputs", "gguf_file", "tokenizer_object"):
        if content.get(key):
            problem = f"{key} is {content[key]!r}: hanmo reads a tokenizer from its own files alone"
            raise VocabularyError(f"{about}: {problem}")
    for name in content.get("fast_tokenizer_files") or ():
        plain_name(name, about)


def _check_class(about: Path, content: dict[str, Any], config: PretrainedConfig) -> None:
    """Check that the class that the folder names is a tokenizer: transformers accepts any of its classes."""
    known = type(config) in TOKENIZER_MAPPING
    for name in (content.get("tokenizer_class"), getattr(config, "tokenizer_class", None)):
        if name is None:
            continue
        found = tokenizer_class_from_name(name) if isinstance(name, str) else name
        known = known or found is not None
        if found is not None and not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
            raise VocabularyError(f"{about.parent}: names {name!r} as its tokenizer, which is none of transformers'")
    if "auto_map" in content and not known:
        raise UnsupportedError(_refusal(about.parent, "its tokenizer", content["auto_map"]))


def _refusal(folder: str | Path, what: str, auto_map: Any) -> str:
    listed = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    names = [name for one in listed for name in (one if isinstance(one, list) else [one]) if isinstance(name, str)]
    files = sorted({f"{name.split('--')[-1].split('.')[0]}.py" for name in names})
    named = f" ({', '.join(files[:4])})" if files else ""
    return (
        f"{folder}: {what} needs the folder's own code{named}, which hanmo never runs; take a version of this model that "
        "transformers opens by itself (made for a newer transformers, often named -hf), or make one with its makers' tools"
    )
