"""Our own training and generation as targets: looked at with the worker that runs them, mended by settings"""
