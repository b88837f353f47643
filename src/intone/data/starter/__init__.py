"""The default training data: eleven skills in simple English, made from a seed, with held-out arguments."""

from intone.data.starter.documents import documents
from intone.data.starter.item import SKILLS, Item
from intone.data.starter.mix import conversations, eval_items, practice_item, training_items

__all__ = ["SKILLS", "Item", "conversations", "documents", "eval_items", "practice_item", "training_items"]
