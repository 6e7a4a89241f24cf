"""Paths that compute nothing: lists of models, health, metrics, the OpenAPI description and the page to read it.

What gives work to a model is a dialect.
"""
