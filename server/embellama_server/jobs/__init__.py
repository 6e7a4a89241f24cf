"""OpenAI's Files and Batches, with `--data-dir`; off by default.

routes: their paths; upload: a file's way to disk; records: what is kept of files and batches; folder: where it is kept;
lines: what a batch asks for; parts: lines that are computed and written together; compute: their texts at the back end;
outputs: the files that a batch writes; run: one batch, to its end; service: which batches run; collector: what is
counted.
"""
