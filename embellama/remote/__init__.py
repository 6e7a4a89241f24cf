"""Other servers that compute in the place of this process: embellama's, or any that answers OpenAI's embeddings.

`client` is the way in, from any thread. It takes texts and gives a vector or an error for each; it knows no files.
"""
