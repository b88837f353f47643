"""Programs that drive other people's code in their own Python: run by path, they import nothing of intone."""
