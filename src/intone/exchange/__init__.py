"""Models from other programs' files into runs, and from runs into files that other programs read."""
