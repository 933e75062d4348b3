"""hanmo 翰墨: Chinese language models the whole way, from an original checkpoint to a served model."""

from hanmo import _autoclasses

__version__ = "0.1.0"

_autoclasses.watch()
