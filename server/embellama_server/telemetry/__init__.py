"""What is told outside about the server: metrics and logs.

It is told by others what happened, and asks nobody but pools for their state.
"""
