"""What the families' tokenizers share.

All but ``kernels`` import nothing else of hanmo: their text is put into the tokenization.py of exported models.
"""
