"""Vectors that were computed before: searched, compared, grouped. `StoredVectors` reads them from an output of
`embellama bulk`; `search`, `duplicates`, `classify` and `compare` work on blocks of rows, wherever those are from.

All of them measure by the cosine, and hold a block of rows at a time, however many there are.
"""
