"""Every "auto" becomes a value with a reason, by measuring on this machine."""
