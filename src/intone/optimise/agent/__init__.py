"""A language model that proposes: it reads, searches, edits and runs tests in a worktree, and never judges"""
