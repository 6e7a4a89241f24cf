"""Rows already known: what they are kept under, where, and the back end that asks there before it computes.

To keep rows in another place, add a `SlowLayer` beside `sqlite` and `redis`, and list it in `layers.slow_layers`.
"""
