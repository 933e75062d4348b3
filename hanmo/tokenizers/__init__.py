"""Shared parts of tokenizers. All but ``kernels`` import nothing else from hanmo: exported models get their source."""
