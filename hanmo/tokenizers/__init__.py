"""What tokenizers share. All but ``kernels`` import nothing else of hanmo: exported models get their text."""
