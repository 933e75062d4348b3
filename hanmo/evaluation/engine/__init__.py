"""How rows and candidates are scored: in batches, once, over several processes."""
