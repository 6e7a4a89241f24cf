"""The `embellama` command: one file for each subcommand, and `flags`, which makes flags of settings.

Here commands read their arguments and print their results; the work that they start belongs to other rooms.
"""
