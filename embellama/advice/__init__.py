"""What users ask before they serve a model: which format is fastest, and what is wrong with a file.

Nothing that embeds depends on it.
"""
