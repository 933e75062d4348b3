"""Faster versions of the parts of networks that cost a CPU the most time."""
