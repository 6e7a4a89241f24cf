"""Files in, files out: rows of any number embedded once, and gone on with where a run was ended.

`run` owns the flow. It knows nothing of the command line, and of what computes only `backend.BulkBackend`.
"""
