"""Measuring models: the published dialogue evaluation, perplexity."""
