"""`intone run` and `intone train`: which run, its plan on disk, its stages in workers, and what came out"""
