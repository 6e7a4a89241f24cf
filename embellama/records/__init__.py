"""What a server wrote of the requests that it answered (`--request-log`): `line` and `hashes` define what is written;
`tally` reads it, `stats`, `compare` and `chart` tell what it comes to.
"""
