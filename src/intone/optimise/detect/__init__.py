"""The detectors: one pure function per bottleneck, from measured signals to a finding with its evidence, or None"""
