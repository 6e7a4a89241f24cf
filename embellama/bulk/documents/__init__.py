"""Documents: texts and PDFs, in folders or by themselves, read whole, by pages or in chunks of a model's tokens.

folder ──► which there are      text, pdf ──► records ──► chunks, where they are cut ──► late, with what is around them
"""
