"""Who may ask, and how much: keys and their limits, with `--keys-file`; off by default.

keyring: the keys of a file; meters: what they have spent; check: the step before the app; charging: tokens, charged
before they are queued.
"""
