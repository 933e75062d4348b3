"""The rank of this process among those that torchrun started, from its environment."""

import os


def main_process() -> bool:
    """Whether this process prints and writes: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Processes of this run, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))
