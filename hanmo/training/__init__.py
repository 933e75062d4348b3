"""Training: one life cycle and one Trainer for all stages, one module per stage."""
