"""``python -m hanmo`` is ``hanmo``."""

from hanmo.cli import main

main()
