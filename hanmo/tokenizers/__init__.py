"""What the families' tokenizers share."""
