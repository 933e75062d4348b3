"""Suites of tasks: readers, prompts and the runner."""
