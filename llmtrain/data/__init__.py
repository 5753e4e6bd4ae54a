"""Raw files to batches: read, clean, tokenize, shard, sample, load."""
