"""The ten CLUE tasks in two protocols: as published, and corrected."""
