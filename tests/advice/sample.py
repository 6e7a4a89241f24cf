"""A report of `embellama bench`, small enough to read."""

from embellama.advice.report import Report, Row, Setting

ROW = Row(name="f16", format="f16", path="m.gguf", n_bytes=9, texts_per_s=100, p50_ms=1, worst_cosine=1, mean_cosine=1)
REPORT = Report("a CPU", 2, 40, "f16", [ROW], [Setting(num_workers=1, n_threads=0, texts_per_s=9, p50_ms=1)], "f16")
