"""GGUF files: their headers, checks that they can be loaded without a crash, and their weights in memory.

Computing with the weights belongs to `embellama.model`; reading texts with the vocabulary, to `embellama.text`.
"""
