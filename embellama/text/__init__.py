"""Text to token ids: vocabularies, prompts written around a text, pairs of query and document.

Nothing here computes a vector or knows what happens to the ids.
"""
