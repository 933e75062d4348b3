"""Opening, reading, converting and inspecting models: driven by the families' tables, which name no family here."""
