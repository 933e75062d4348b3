"""Downloads models by hub id once, resumably, with the hub's own library, and never the code in a repository."""

import re
from pathlib import Path

from hanmo.errors import CheckpointError, UnsupportedError
from hanmo.folders import recover_missing

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MODELSCOPE = "modelscope:"
DATA_FILES = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.txt", "*.model", "*.jinja"]


def local_folder(model: str | Path) -> Path:
    """The folder of a model: a path as it is, or a hub id (``org/name``; ``modelscope:org/name``) after download.

    Completes an interrupted replacement of the folder first. HF_ENDPOINT names another hub, HF_HOME where downloads go.

    Raises:
        CheckpointError: there is no such path and no such repository, or the hub cannot be reached.
        UnsupportedError: ModelScope's client is not installed.
    """
    name = str(model)
    if name.startswith(MODELSCOPE):
        return _from_modelscope(name.removeprefix(MODELSCOPE))
    recover_missing(Path(name))
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
        problem = f"no such folder here, and {constants.ENDPOINT} cannot give it: {error}"
        advice = "HF_ENDPOINT names another hub, and finished downloads are kept"
        raise CheckpointError(f"{name}: {problem}; {advice}") from error


def _from_modelscope(name: str) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise UnsupportedError(f"{MODELSCOPE}{name}: needs ModelScope's client: pip install modelscope") from error
    return Path(snapshot_download(name, allow_patterns=DATA_FILES))
