"""How people talk to a model: the terminal chat."""
