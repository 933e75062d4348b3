"""Original checkpoints: located, read, recognised and written."""
