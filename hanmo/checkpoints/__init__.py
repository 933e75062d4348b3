"""Opening, reading, converting and inspecting models: driven by the families' tables, which name no family here."""

from hanmo.checkpoints.open import open_model
from hanmo.checkpoints.save import save_model

__all__ = ["open_model", "save_model"]
