"""Decoding: settings, the one decode loop, beam search, chat sessions."""
