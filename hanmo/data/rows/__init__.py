"""The rows of a training run."""
