"""Opens a model in any form, as a network and its family object."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hanmo.checkpoints.adapter import apply_adapter
from hanmo.checkpoints.locate import Located, locate
from hanmo.checkpoints.originals.config_inference import (
    absent_tensors,
    blank_network,
    check_size,
    expected_shapes,
    infer_config,
)
from hanmo.checkpoints.originals.recognise import Original, some
from hanmo.errors import CheckpointError, ConfigError, UnsupportedError, VocabularyError, unknown
from hanmo.families.base import Family, OpenedModel
from hanmo.families.safe_loading import as_hanmo_error, safe_network, safe_tokenizer
from hanmo.families.untrusted import check_pieces
from hanmo.nn.cpu.int8 import to_int8
from hanmo.nn.gpu import leave_cudnn_attention_out, multiplies_in_bf16
from hanmo.nn.tensor_parallel import distributed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"
RULES_FOLDER = "rules"  # inside a folder of ours, with the files of score rules

_File = str | Path | None
_Cut = Callable[[PretrainedConfig], dict[str, Any]]  # ``distributed`` for the wanted number of ranks


def open_model(
    path: str | Path,
    *,
    size: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    rules: str | Path | None = None,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    tensor_parallel: int = 1,
    template: Mapping[str, Any] | None = None,
    avoid_fp16: bool = False,
    blank: bool = False,
) -> OpenedModel:
    """Open a folder of ours, an original checkpoint, a model of transformers or a hub id. Weights are never random.

    Args:
        size, config: released size or configuration file of an original checkpoint whose files do not decide it.
        vocab: vocabulary file of an original checkpoint; default: the one beside the weights.
        rules: folder of score rules; default: the one inside a folder of ours.
        adapter: folder of a LoRA adapter in peft's form, which is merged into the weights; see ``apply_adapter``.
        dtype: fp32, bf16, fp16, or for inference on a CPU int8; default: that of the files, or fp32 for fp16 on a CPU.
        device: default: CUDA if there is one, else the CPU.
        tensor_parallel: number of ranks to split the model over: processes started by torchrun, all of which call this.
        template: arguments of the chat template, such as {"enable_thinking": False}.
        avoid_fp16: compute with files in fp16 in bf16 on a GPU that can, where the family may go beyond fp16's range.
        blank: weights of the meta device, which have shapes alone: none is read, nor an adapter.

    Raises:
        UnsupportedError: the model cannot be cut into this number of parts, or it has no chat template for arguments.
        ConfigError: the chat template uses no such argument, or the device or dtype does not exist.
        CheckpointError: nothing there, damaged, incomplete, or of no known family.
        VocabularyError: no vocabulary, or one that disagrees with the embedding.
    """
    _check_parts(dtype, device, adapter, tensor_parallel)
    leave_cudnn_attention_out()
    target = _device(device or ("cuda" if torch.cuda.is_available() and dtype != INT8 else "cpu"))
    located = locate(path)
    located.weights.check_dtypes(quantized=located.original is None)
    stored = located.weights.dtype
    wanted = choose_dtype(dtype, stored, target)
    if avoid_fp16 and dtype is None and wanted == torch.float16 and located.family.exceeds_fp16:
        wanted = torch.bfloat16 if multiplies_in_bf16() else wanted
    cut = functools.partial(distributed, ranks=tensor_parallel, device=target)
    if located.original is not None:
        network, family, title = _open_original(located.original, size, config, vocab, wanted, cut, blank)
    elif given := [name for name, value in (("size", size), ("config", config), ("vocab", vocab)) if value]:
        raise ConfigError(f"{located.path} is a model folder, complete in itself: leave out --{' and --'.join(given)}")
    else:
        network, family, title = _open_folder(located, wanted, cut, blank)
    network = network.to(torch.device("meta") if blank else target).eval()
    if adapter is not None and not blank:
        apply_adapter(network, adapter)
    if dtype == INT8:
        to_int8(network)
    if rules is not None:
        family.assets.update(find_rule_files(type(family), Path(rules)))
    title += f"{f' with the adapter {adapter}' if adapter else ''}, {_precision(stored, dtype or dtype_name(wanted))}"
    return OpenedModel(network, family.with_template(template or {}), title)


def _check_parts(dtype: str | None, device: str | torch.device | None, adapter: _File, tensor_parallel: int) -> None:
    """UnsupportedError for what does not go together."""
    if dtype == INT8 and (str(device or "cpu") != "cpu" or tensor_parallel > 1):
        raise UnsupportedError("int8 is for one process on a CPU; elsewhere use bf16 or fp16")
    if adapter is not None and tensor_parallel > 1:
        raise UnsupportedError(
            "an adapter is merged into a whole model: hanmo convert MODEL FOLDER --adapter FOLDER first"
        )


def _device(name: str | torch.device) -> torch.device:
    """The device; ConfigError if no tensor can be allocated on it."""
    expected = "expected cpu, cuda, mps, or a numbered device like cuda:0"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name}: no such device; {expected}") from None
    if device.type == "meta":
        raise ConfigError(f"device={name}: holds no values; {expected}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ConfigError(f"device={name}: cannot be used here ({reason}); give another --device, like cpu") from None
    return device


def _open_folder(located: Located, dtype: torch.dtype, cut: _Cut, blank: bool) -> tuple[Any, Family, str]:
    family, path, weights = located.family, located.path, located.weights
    config = located.config()
    check_size(family, config, weights)
    options = {"dtype": dtype, "use_safetensors": weights.container == "safetensors", **cut(config)}
    with quiet():
        if blank:
            network, info = blank_network(family, config, path).to(dtype), dict[str, Any]()
        else:
            network, info = safe_network(family.network_class, path, config, **options)
        tokenizer = safe_tokenizer(path, family.tokenizer_class, config)
    _require_loaded(path, info)
    check_vocabulary(family, network.config.get_text_config().vocab_size, tokenizer, str(path))
    rules = find_rule_files(family, path / RULES_FOLDER, optional=True)
    return network, family(network.config, tokenizer, rules, located.generation), str(path)


def _open_original(
    original: Original, size: str | None, config: _File, vocab: _File, dtype: torch.dtype, cut: _Cut, blank: bool
) -> tuple[Any, Family, str]:
    weights = original.weights
    original.require_complete()
    inferred, size_name = infer_config(original, size, config)
    tokenizer = open_tokenizer(original, vocab)
    check_vocabulary(original.family, inferred.vocab_size, tokenizer, str(weights.path))
    family = original.family(inferred, tokenizer)  # fills in the settings that depend on the vocabulary
    network = (
        blank_network(original.family, inferred).to(dtype)
        if blank
        else load_network(original, inferred, dtype, cut(inferred))
    )
    family.config = network.config
    title = f"{size_name or original.family.name} from {weights.path} ({original.layout.name} layout"
    title += f", {len(weights.ranks)} ranks" if len(weights.ranks) > 1 else ""
    return network, family, title + (f", iteration {weights.iteration})" if weights.iteration is not None else ")")


def load_network(original: Original, config: PretrainedConfig, dtype: torch.dtype, cut: dict[str, Any]) -> Any:
    """Our network with an original's weights, without a second copy; fp32 files stay memory-mapped."""
    original.check_copies()
    where = original.weights.path
    expected = expected_shapes(original.family, config)
    # Optional tensors that the files lack are zero, which has no effect.
    state = {name: torch.zeros(expected[name], dtype=dtype) for name in absent_tensors(original, config)}
    for name, tensor in original.tensors():
        rounded = tensor.is_floating_point() and not keeps_precision(original.family, name)
        state[name] = tensor.to(dtype) if rounded else tensor
    with quiet():
        network, info = safe_network(
            original.family.network_class, None, config, where, state_dict=state, dtype=dtype, **cut
        )
    _require_loaded(where, info)
    return network


def keeps_precision(family: type[Family], name: str) -> bool:
    """Whether a tensor is never rounded to a narrower dtype (frequencies of sinusoids)."""
    return any(part in name for part in family.network_class._keep_in_fp32_modules_strict or ())


def _require_loaded(path: Path, info: dict[str, Any]) -> None:
    kinds = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "mis-shaped"}
    if problems := [f"{kind}: {some(sorted(map(str, info[key])))}" for key, kind in kinds.items() if info.get(key)]:
        raise CheckpointError(f"{path}: tensors {'; '.join(problems)}")


def open_tokenizer(original: Original, vocab: str | Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of an original, from ``vocab`` or the vocabulary file beside the weights; else a VocabularyError."""
    tokenizer_class = original.family.tokenizer_class
    name = tokenizer_class.vocab_files_names["vocab_file"]
    if vocab is None:
        folders = dict.fromkeys([original.weights.folder, original.weights.files[0].parent])
        places = [folder / name for folder in folders]
    else:
        places = [Path(vocab) / name if Path(vocab).is_dir() else Path(vocab)]
    for place in places:
        if place.is_file():
            if place.suffix == ".model":
                check_pieces(place)
            with as_hanmo_error(place, f"not a vocabulary of {original.family.name}", VocabularyError):
                return tokenizer_class(vocab_file=str(place))
    looked = ", ".join(map(str, places))
    raise VocabularyError(f"{original.weights.path}: no vocabulary: looked for {looked}; give it with --vocab FILE")


def check_vocabulary(family: type[Family], rows: int, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise VocabularyError if the embedding lacks a row for a token, or has more rows than padding explains."""
    tokens, multiple = len(tokenizer), family.vocab_padded_to
    if rows < tokens or (multiple and rows > -(-tokens // multiple) * multiple):
        sizes = f"the vocabulary has {tokens:,} tokens, the embedding {rows:,} rows"
        advice = "they do not belong together (its text would be garbage): give the model's own vocabulary with --vocab"
        raise VocabularyError(f"{where}: {sizes}; {advice}")


def find_rule_files(family: type[Family], folder: Path, optional: bool = False) -> dict[str, str]:
    """The files of score rules in a folder, by role."""
    if not optional and not family.asset_files:
        raise UnsupportedError(f"{family.name} models have no score rules; leave out --rules")
    found = {role: str(folder / name) for role, name in family.asset_files.items() if (folder / name).is_file()}
    missing = [name for role, name in family.asset_files.items() if role not in found]
    if missing and not optional:
        raise CheckpointError(f"{folder}: not a folder of {family.name}'s rules, it lacks {', '.join(missing)}")
    return found


def choose_dtype(wanted: str | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to load: as wanted, else as stored, but fp32 instead of fp16 on a CPU."""
    if wanted == INT8:
        return stored  # rounded after loading
    if wanted is not None:
        if wanted not in DTYPES:
            raise ConfigError(unknown("dtype", wanted, [*DTYPES, INT8]))
        return DTYPES[wanted]
    return torch.float32 if device.type == "cpu" and stored == torch.float16 else stored


def _precision(stored: torch.dtype, used: str) -> str:
    """The dtype of the files, and the one that is computed in if it is another."""
    name = dtype_name(stored)
    return name if used == name else f"{name} computed in {used}"


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, bf16, fp16, or torch's name."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch transformers' progress bars and warnings off: hanmo checks and reports for itself."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
