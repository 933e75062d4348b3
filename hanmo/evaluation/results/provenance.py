"""Records everything that a result depends on: data, weights, configuration, software."""

import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

import hanmo
from hanmo.families.base import OpenedModel
from hanmo.nn.cpu.int8 import is_int8
from hanmo.records import Record

IRRELEVANT = ("_name_or_path", "architectures", "dtype", "transformers_version")  # keys of a configuration


def records_hash(records: Iterable[Record]) -> str:
    """The first 16 hex digits of sha256 over the records, whatever file they came from."""
    digest = hashlib.sha256()
    for record in records:
        named = asdict(record).items()
        content = {name: value for name, value in named if name not in ("where", "fields") and value is not None}
        digest.update(json.dumps([type(record).__name__, content], ensure_ascii=False, sort_keys=True).encode("utf-8"))
    return digest.hexdigest()[:16]


def weights_hash(network: torch.nn.Module) -> str:
    """The first 16 hex digits of sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def computed_by(opened: OpenedModel) -> dict[str, str]:
    """All that a score depends on besides its record: weights and configuration (hashes), dtype, device, chat template."""
    config = {name: value for name, value in opened.family.config.to_dict().items() if name not in IRRELEVANT}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    found = {
        "weights": weights_hash(opened.network),
        "config": digest.hexdigest()[:16],
        "precision": "int8" if is_int8(opened.network) else str(opened.network.dtype).removeprefix("torch."),
        "device": opened.network.device.type,
    }
    return {**found, "template": mode} if (mode := opened.family.template_mode) else found


def software() -> dict[str, str]:
    """The version of hanmo, and its commit where it runs from a checkout or was installed from one.

    "+" after the commit: the checkout has changes that are not committed.
    """
    found = {"hanmo": hanmo.__version__}
    if commit := _checkout() or _installed():
        found["commit"] = commit
    return found


def _checkout() -> str:
    """The commit of the checkout that this file is in; "" without a checkout or git."""
    root = Path(hanmo.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip()[:12] + "+" * bool(git("status", "--porcelain", "--", "hanmo"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _installed() -> str:
    """The commit that pip installed from a repository; "" for other installations."""
    try:
        noted = metadata.distribution("hanmo").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return ""
    return str(json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", ""))[:12]
