"""Make the virtual environment. Standard library only: this runs before anything is installed.

    python3 tools/install.py --venv .venv --extras dev

The one hard part is torch. On Linux, PyPI's torch brings several GB of CUDA libraries. Where no NVIDIA GPU is found, the
CPU build is taken instead: from a wheel pip already knows (PIP_FIND_LINKS), or from PyTorch's CPU index if that answers.
If neither has it, this stops and says so rather than download gigabytes; HANMO_TORCH=cuda allows it.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = ROOT / "constraints.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description="Create the environment and install hanmo into it.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extras", default="dev")
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036  an older Python may run this file
        sys.exit(
            f"hanmo needs Python 3.10 or newer; this is {platform.python_version()}. Try PYTHON=python3.11 make env"
        )

    python = options.venv / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        print(f"creating {options.venv}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(options.venv)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-c", str(CONSTRAINTS)]

    print("installing torch", flush=True)
    subprocess.run([*pip, "--quiet", *torch_arguments(pip), "torch"], check=True)
    print("installing hanmo and what it needs", flush=True)
    subprocess.run([*pip, "--quiet", "-e", f"{ROOT}[{options.extras}]"], check=True)
    print("done", flush=True)


def torch_arguments(pip: list[str]) -> list[str]:
    """The pip arguments that give the right build of torch for this machine."""
    wanted = os.environ.get("HANMO_TORCH", "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        sys.exit(f"HANMO_TORCH={wanted}: must be auto, cpu or cuda")
    if platform.system() != "Linux" or wanted == "cuda" or (wanted == "auto" and shutil.which("nvidia-smi")):
        return []
    if not brings_cuda(pip):
        return []
    if answers(CPU_INDEX):
        return ["--extra-index-url", CPU_INDEX]
    sys.exit(
        "No NVIDIA GPU here, and PyTorch's CPU wheels are out of reach: "
        f"{CPU_INDEX} does not answer.\n"
        "Either put the CPU wheel of torch in a folder and set PIP_FIND_LINKS to it, or set HANMO_TORCH=cuda to take "
        "the CUDA build (several GB), then run this again."
    )


def brings_cuda(pip: list[str]) -> bool:
    """Whether pip, as set up here, would install CUDA libraries along with torch. Downloads metadata only."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        dry_run = [*pip, "--quiet", "--dry-run", "--report", str(report), "torch"]
        if subprocess.run(dry_run, stdout=subprocess.DEVNULL).returncode:
            return True
        names = {item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]}
    return any(name.startswith(("nvidia-", "triton", "cuda-")) for name in names)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main()
