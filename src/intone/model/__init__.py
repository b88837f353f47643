"""The GPT: its blocks, attention, optimizer, cost in FLOPs and bytes, and its checkpoints."""
