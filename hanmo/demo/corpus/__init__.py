"""The built-in corpus of Chinese dialogues."""
