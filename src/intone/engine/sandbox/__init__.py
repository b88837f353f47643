"""Python that a model wrote, run where it can read, reach and disturb nothing, or not run at all."""
