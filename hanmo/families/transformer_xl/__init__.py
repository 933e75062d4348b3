"""Transformer-XL (文汇): a decoder that carries the memory of what it has read from segment to segment."""
