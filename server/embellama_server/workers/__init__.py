"""Worker processes and the dispatcher in front of them: batches out, rows back, deaths survived.

No HTTP in here.
"""
