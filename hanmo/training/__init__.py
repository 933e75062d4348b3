"""Training: one small Trainer for all stages, one module per stage."""
