"""Advice before a model is served: which format of it is fastest here, and what is wrong with its file.

Nothing that embeds depends on this.
"""
