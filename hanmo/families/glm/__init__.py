"""GLM: blank filling. The context is read in both directions, the answer is written after it, token by token."""
