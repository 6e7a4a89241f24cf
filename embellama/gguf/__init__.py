"""What a GGUF file says of itself, whether it may be loaded, and its weights in memory.

What is computed with the weights belongs to `embellama.model`; how its vocabulary reads a text, to `embellama.text`.
"""
