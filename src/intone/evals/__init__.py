"""How good a model is: bits per byte, skills and chat tasks, each with an interval."""
