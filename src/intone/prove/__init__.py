"""Proof of a change: what was measured in turns, how sure that is, and whether the results stayed right"""
