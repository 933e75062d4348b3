"""Measures of models: dialogue, perplexity, suites of tasks, human ratings."""
