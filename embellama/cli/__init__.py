"""The `embellama` command: one file for each subcommand, and what makes flags of settings.

What a command does belongs elsewhere; here is only how it is asked for and how its result is printed.
"""
