"""The training loop that base, mid and SFT share: it executes a plan and decides nothing."""
