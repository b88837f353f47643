"""`intone scan`: reads a PyTorch code base and names what is wrong or slow in it, with its place and a fix."""
