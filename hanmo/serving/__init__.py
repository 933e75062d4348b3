"""The server: OpenAI's protocol over the engine of ``generation``.

One thread decodes (worker.py); one event loop reads requests, tokenises, and turns ids into text. A request becomes a
plan, a plan a job of several replies, a job updates, and updates text, whole or in chunks.
"""
