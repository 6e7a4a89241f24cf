"""Serve embeddings over HTTP: an async front, a dispatcher, and worker processes that own one model each.

Import of this package stays light: worker processes import it too, and need no HTTP.
"""
