"""Opens, saves, converts and inspects models, driven by the families' tables; no family is named here."""

from hanmo.checkpoints.open import open_model
from hanmo.checkpoints.save import save_model

__all__ = ["open_model", "save_model"]
