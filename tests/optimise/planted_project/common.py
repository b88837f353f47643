"""Helpers that every script uses."""
import json
import pickle

import torch

SEED = 99


def pick_device(name=None):
    if name:
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw(scores, heat=0.9):
    torch.manual_seed(SEED)
    return torch.multinomial(torch.softmax(scores / heat, -1), 1)


def number(t):
    return t.item()


def store(where, what):
    """Write a checkpoint."""
    torch.save(what, where)


def read_any(where):
    if str(where).endswith(".json"):
        with open(where) as f:
            return json.load(f)
    with open(where, "rb") as f:
        return pickle.load(f)
