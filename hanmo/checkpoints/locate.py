"""Locates a model once; opening, inspecting and converting all use the result."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from hanmo import families
from hanmo.checkpoints.originals.config_inference import NO_NETWORK, expected_shapes
from hanmo.checkpoints.originals.recognise import Original, recognise
from hanmo.checkpoints.originals.weights import Weights, find_weights
from hanmo.config import check_fields
from hanmo.errors import CheckpointError, UnsupportedError
from hanmo.families.base import Family
from hanmo.families.safe_loading import TOKENIZER_CONFIG, as_hanmo_error, check_adapter, is_known_type, safe_config
from hanmo.files import read_json
from hanmo.folders import recover_missing

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OF_A_FOLDER = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|config\.json")
MODELSCOPE = "modelscope:"
DATA_FILES = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Located:
    """A model on this machine. Its tensors are mapped, not read."""

    path: Path  # the folder or file; of a hub id, the folder it was downloaded to
    weights: Weights
    family: type[Family]
    original: Original | None = None  # None for a folder that hanmo wrote and for a model of transformers

    @property
    def is_ours(self) -> bool:
        """Whether hanmo wrote the folder, or could have."""
        return self.original is None and self.family.name != families.TRANSFORMERS

    @property
    def layout(self) -> str:
        """The original's layout, "hanmo" or "transformers"."""
        if self.original is not None:
            return self.original.layout.name
        return "hanmo" if self.is_ours else "transformers"

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The content of a model folder's generation_config.json; empty if there is none, and for originals."""
        file = self.path / GENERATION_CONFIG_NAME
        return read_json(file) if self.original is None and file.is_file() else {}

    def config(self) -> PretrainedConfig:
        """The configuration of a folder; raises CheckpointError if it does not open, or an adapter lies beside it."""
        if self.is_ours:
            file = self.path / CONFIG_NAME
            check_fields(self.family.config_class, self.weights.config or {}, str(file))
            config = safe_config(self.path, self.family.config_class, self.weights.config)
            with as_hanmo_error(file, NO_NETWORK):
                expected_shapes(self.family, config)
            return config
        check_adapter(self.path)
        return safe_config(self.path, content=self.weights.config)


def locate(path: str | Path) -> Located:
    """The model at a path or hub id; raises CheckpointError if it is not there, incomplete, or of no known family."""
    path = local_folder(path)
    return identify(path, find_weights(path))


def identify(path: Path, weights: Weights) -> Located:
    """The model of these weights at this path; raises CheckpointError if no family of this hanmo fits."""
    is_folder = path.is_dir() and weights.container in ("bin", "safetensors")
    model_type = (weights.config or {}).get("model_type") if is_folder else None
    if family := _our_family(path, model_type):
        return Located(path, weights, family)
    try:  # before the model type, which an original may share with another model of transformers
        original = recognise(weights)
    except CheckpointError:
        if not is_known_type(model_type):
            raise
        return Located(path, weights, families.load(families.TRANSFORMERS))
    return Located(path, weights, original.family, original)


def tokenizer_family(folder: Path) -> type[Family] | None:
    """The family whose tokenizer lies in a model folder, with or without weights; None if it holds none."""
    file = folder / CONFIG_NAME
    model_type = read_json(file).get("model_type") if file.is_file() else None
    if family := _our_family(folder, model_type):
        return family
    if (folder / TOKENIZER_CONFIG).is_file() or (is_known_type(model_type) and locate(folder).original is None):
        return families.load(families.TRANSFORMERS)
    return None


def _our_family(folder: Path, model_type: Any) -> type[Family] | None:
    for family in families.ours():
        if family.config_class.model_type == model_type:
            return family
    if isinstance(model_type, str) and model_type.startswith("hanmo-"):
        made = f"made by a hanmo that knows the model type {model_type!r}"
        raise CheckpointError(f"{folder / CONFIG_NAME}: {made}; this one does not")
    return None


def local_folder(model: str | Path) -> Path:
    """The folder of a model: a path as it is, or a hub id (``org/name``; ``modelscope:org/name``) after download.

    A file of a folder that is a model only as a whole, such as model.safetensors, stands for the folder.
    Completes an interrupted replacement of the folder first. The hubs' own libraries download once, resumably, and never
    the code in a repository; HF_ENDPOINT sets another hub, HF_HOME the download folder. CheckpointError if there is no
    such path and repository, or no hub; UnsupportedError if ModelScope's client is not installed.
    """
    name = str(model)
    if name.startswith(MODELSCOPE):
        return _from_modelscope(name.removeprefix(MODELSCOPE))
    recover_missing(Path(name))
    if _OF_A_FOLDER.fullmatch(Path(name).name) and (Path(name).parent / CONFIG_NAME).is_file():
        return Path(name).parent
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        return Path(model)
    return _from_hugging_face(name)


def _from_hugging_face(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=DATA_FILES))
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{name}: no such folder here, and no such model on {constants.ENDPOINT}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        problem = f"no such folder here, and {constants.ENDPOINT} did not provide it: {error}"
        advice = "HF_ENDPOINT sets another hub; finished downloads are kept"
        raise CheckpointError(f"{name}: {problem}; {advice}") from error


def _from_modelscope(name: str) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise UnsupportedError(f"{MODELSCOPE}{name}: needs ModelScope's client: pip install modelscope") from error
    return Path(snapshot_download(name, allow_patterns=DATA_FILES))
