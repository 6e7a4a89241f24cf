"""Facts about this computer: its devices, measurements kept in the cache folder, a process for what may crash.

Nothing in here knows models or texts.
"""
