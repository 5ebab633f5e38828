"""Text to token shards: readers, tokenizer, byte tables, the embedded corpus, downloads."""
