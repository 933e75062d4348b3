"""Opening a model, whatever form it is in, as a network with the family that speaks its language."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hanmo import families
from hanmo.checkpoints.generation_config import read_generation
from hanmo.checkpoints.hub import local_folder
from hanmo.checkpoints.originals.config_inference import absent_tensors, check_size, expected_shapes, infer_config
from hanmo.checkpoints.originals.locate import Weights, find_weights
from hanmo.checkpoints.originals.recognise import Original, recognise, some
from hanmo.errors import CheckpointError, ConfigError, UnsupportedError, VocabularyError, quoted, unknown
from hanmo.families.base import Family, OpenedModel
from hanmo.families.safe_loading import is_known_type, safe_config, safe_network, safe_tokenizer
from hanmo.families.untrusted import check_pieces
from hanmo.files import read_json
from hanmo.nn.cpu.int8 import to_int8
from hanmo.nn.tensor_parallel import distributed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"
RULES = "rules"  # the folder inside ours in which a model's score rules lie


def open_model(
    path: str | Path,
    *,
    size: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    rules: str | Path | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    tensor_parallel: int = 1,
) -> OpenedModel:
    """A model from a folder of ours, an original checkpoint, a hub folder or a hub id. Weights are never random.

    Args:
        size: released size of an original checkpoint, where the files do not decide.
        config: the original's configuration file, likewise.
        vocab: vocabulary file of an original checkpoint; default: the one beside the weights.
        rules: folder of score rules; default: the one inside a folder of ours.
        dtype: fp32, bf16, fp16, or for inference on a CPU int8; default: the files', except that the CPU, which is
            slow in fp16, gets fp32.
        device: default: CUDA if there is one, else the CPU.
        tensor_parallel: ranks over which the model is cut; each is a process of its own, started by torchrun, and all
            call this.

    Raises:
        UnsupportedError: the model cannot be cut into so many parts.
        CheckpointError: nothing there, damaged, incomplete, or of no known family; says what was found.
        VocabularyError: no vocabulary, or one that disagrees with the embedding.
    """
    path = local_folder(path)
    if dtype == INT8 and (str(device or "cpu") != "cpu" or tensor_parallel > 1):
        raise UnsupportedError("int8 is for one process on a CPU; elsewhere use bf16 or fp16")
    target = _device(device or ("cuda" if torch.cuda.is_available() and dtype != INT8 else "cpu"))
    if family := family_of_folder(path):
        if given := [name for name, value in (("size", size), ("config", config), ("vocab", vocab)) if value]:
            raise ConfigError(f"{path} is a model folder, complete in itself: leave out --{' and --'.join(given)}")
        opened = _open_folder(path, family, dtype, target, tensor_parallel)
    else:
        opened = _open_original(path, size, config, vocab, dtype, target, tensor_parallel)
    if dtype == INT8:
        to_int8(opened.network)
    if rules is not None:
        opened.family.assets.update(find_rules(type(opened.family), Path(rules)))
    return opened


def _device(name: str | torch.device) -> torch.device:
    """The device, if a tensor can be made on it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device={name}: no such device; expected cpu, cuda, mps, or one of several like cuda:0"
        ) from None
    if device.type == "meta":
        raise ConfigError(f"device={name}: holds no values; expected cpu, cuda, mps, or one of several like cuda:0")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ConfigError(
            f"device={name}: cannot be used here ({reason}); give another --device, such as cpu"
        ) from None
    return device


def family_of_ours(path: Path) -> type[Family] | None:
    """The family of a folder that hanmo wrote, by the model_type in its config.json; None for any other path."""
    file = path / "config.json"
    if not file.is_file():
        return None
    model_type = read_json(file).get("model_type")
    for name in families.OURS:
        family = families.load(name)
        if family.config_class.model_type == model_type:
            return family
    if isinstance(model_type, str) and model_type.startswith("hanmo-"):
        raise CheckpointError(f"{file}: made by a hanmo that knows the model type {model_type!r}; this one does not")
    return None


def family_of_folder(path: Path) -> type[Family] | None:
    """The family of a folder that opens as it is: written by hanmo, or of a model that transformers knows."""
    if family := family_of_ours(path):
        return family
    if not (path / "config.json").is_file():
        return None
    weights = find_weights(path)
    if not is_transformers_model(weights):
        return None
    try:
        recognise(weights)  # originals may carry a model type that transformers uses for another model
    except CheckpointError:
        return families.load(families.TRANSFORMERS)
    return None


def read_original(
    path: str | Path, size: str | None = None, config: str | Path | None = None
) -> tuple[Original, PretrainedConfig, str | None]:
    """An original checkpoint, complete and of settled configuration, with its released size's name if it has one.

    Reads no weights yet.
    """
    original = recognise(find_weights(path))
    original.require_complete()
    return original, *infer_config(original, size, config)


def _open_folder(path: Path, family: type[Family], dtype: str | None, device: torch.device, ranks: int) -> OpenedModel:
    weights = find_weights(path)  # reads every index, so that a damaged file is named
    stored = most_common_dtype(weights)
    wanted = choose_dtype(dtype, stored, device)
    config = safe_config(path, family.config_class)
    check_size(family, config, weights)
    cut = distributed(config, ranks, device) if ranks > 1 else {}
    with quiet():
        network, info = safe_network(
            family.network_class, path, config, dtype=wanted, use_safetensors=weights.container == "safetensors", **cut
        )
        tokenizer = safe_tokenizer(path, family.tokenizer_class)
    _require_loaded(path, info)
    check_vocabulary(family, network.config.get_text_config().vocab_size, tokenizer, str(path))
    rules = find_rules(family, path / RULES, optional=True)
    opened = family(network.config, tokenizer, rules, read_generation(path))
    return OpenedModel(network.to(device).eval(), opened, _described(str(path), stored, dtype or dtype_name(wanted)))


def _open_original(
    path: Path,
    size: str | None,
    config: str | Path | None,
    vocab: str | Path | None,
    dtype: str | None,
    device: torch.device,
    ranks: int,
) -> OpenedModel:
    original, settled, size_name = read_original(path, size, config)
    tokenizer = open_tokenizer(original, vocab)
    check_vocabulary(original.family, settled.vocab_size, tokenizer, str(path))
    wanted = choose_dtype(dtype, original.dtype, device)
    family = original.family(settled, tokenizer)  # settles what of the configuration the vocabulary decides
    network = load_network(original, settled, wanted, distributed(settled, ranks, device))
    family.config = network.config
    what = f"{size_name or original.family.name} from {path} ({original.layout.name} layout"
    what += f", {len(original.weights.ranks)} ranks" if len(original.weights.ranks) > 1 else ""
    what += f", iteration {original.weights.iteration})" if original.weights.iteration is not None else ")"
    return OpenedModel(network.to(device).eval(), family, _described(what, original.dtype, dtype or dtype_name(wanted)))


def load_network(
    original: Original, config: PretrainedConfig, dtype: torch.dtype, cut: dict[str, Any] | None = None
) -> Any:
    """Our network with an original's weights. There is one copy of them in memory; of fp32 files, none but the file.

    Optional tensors that the files lack are zero, which is as if they were not there.
    """
    original.check_copies()
    expected = expected_shapes(original.family, config)
    state = {
        name: tensor if keeps_precision(original.family, name) else _own(tensor, dtype)
        for name, tensor in original.tensors()
    }
    state.update({name: torch.zeros(expected[name], dtype=dtype) for name in absent_tensors(original, config)})
    with quiet():
        network, info = safe_network(
            original.family.network_class, None, config, state_dict=state, dtype=dtype, **(cut or {})
        )
    _require_loaded(original.weights.path, info)
    return network


def keeps_precision(family: type[Family], name: str) -> bool:
    """Whether a tensor is never to be rounded to a narrower dtype (frequencies of sinusoids)."""
    return any(part in name for part in family.network_class._keep_in_fp32_modules_strict or ())


def _own(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _require_loaded(path: Path, info: dict[str, Any]) -> None:
    problems = [
        f"{what}: {some(sorted(map(str, info[key])))}"
        for key, what in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "mis-shaped"),
        )
        if info[key]
    ]
    if problems:
        raise CheckpointError(f"{path}: tensors {'; '.join(problems)}")


def open_tokenizer(original: Original, vocab: str | Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of an original checkpoint, from ``vocab`` or the vocabulary file beside the weights.

    Raises:
        VocabularyError: there is none, or it is not a vocabulary of this family.
    """
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
            try:
                return tokenizer_class(vocab_file=str(place))
            except (ValueError, OSError, RuntimeError) as error:
                raise VocabularyError(
                    f"{place}: not a vocabulary of {original.family.name}: {quoted(error)}"
                ) from error
    looked = ", ".join(map(str, places))
    raise VocabularyError(f"{original.weights.path}: no vocabulary: looked for {looked}; give it with --vocab FILE")


def check_vocabulary(family: type[Family], rows: int, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """VocabularyError if the embedding has not a row for every token, or more rows than padding explains."""
    tokens, multiple = len(tokenizer), family.vocab_padded_to
    if rows < tokens or (multiple and rows > -(-tokens // multiple) * multiple):
        raise VocabularyError(
            f"{where}: the vocabulary has {tokens:,} tokens, the embedding {rows:,} rows; "
            "they do not belong together (its text would be garbage): give the model's own vocabulary with --vocab"
        )


def find_rules(family: type[Family], folder: Path, optional: bool = False) -> dict[str, str]:
    """The files of score rules in a folder, by role."""
    if not optional and not family.asset_files:
        raise UnsupportedError(f"{family.name} models have no score rules; leave out --rules")
    found = {role: str(folder / name) for role, name in family.asset_files.items() if (folder / name).is_file()}
    missing = [name for role, name in family.asset_files.items() if role not in found]
    if missing and not optional:
        raise CheckpointError(f"{folder}: not a folder of {family.name}'s rules, it lacks {', '.join(missing)}")
    return found


def choose_dtype(wanted: str | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to load in: as wanted, else as stored, but fp32 where a CPU would have to compute in fp16."""
    if wanted == INT8:
        return stored  # rounded from what the files say
    if wanted is not None:
        if wanted not in DTYPES:
            raise ConfigError(unknown("dtype", wanted, [*DTYPES, INT8]))
        return DTYPES[wanted]
    return torch.float32 if device.type == "cpu" and stored == torch.float16 else stored


def most_common_dtype(weights: Weights) -> torch.dtype:
    """The dtype that most of the weights have."""
    counts: dict[torch.dtype, int] = {}
    for tensor in weights.ranks[0].values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, bf16, fp16, or torch's name."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype).removeprefix("torch."))


def _described(what: str, stored: torch.dtype, used: str) -> str:
    return f"{what}, {dtype_name(stored)}" + ("" if dtype_name(stored) == used else f" computed in {used}")


def is_transformers_model(weights: Weights) -> bool:
    """Whether config.json beside the weights names a model type of transformers."""
    return is_known_type((weights.config or {}).get("model_type"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' own bars and reports off: what they say is checked and said by us."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
