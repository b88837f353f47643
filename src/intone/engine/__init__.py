"""Generation: requests in, token events out, with a key-value cache, sampling and tools."""
