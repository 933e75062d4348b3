"""Transformer-XL (文汇): a decoder with a memory of earlier segments."""
