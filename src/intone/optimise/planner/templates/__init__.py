"""Features of our own code base that need no language model: how each is recognised, planned, written and tested."""
