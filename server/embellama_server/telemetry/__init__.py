"""Metrics, logs and traces.

Other parts report what happened; the only state read from here is that of the pools, for metrics.
"""
