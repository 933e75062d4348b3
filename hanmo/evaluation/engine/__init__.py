"""Scores of rows and candidates: in batches, computed once, over several processes."""
