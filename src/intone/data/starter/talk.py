"""Who the model is, and small talk that stays on the topic the person brought up."""

from random import Random

from intone.data.starter.item import Item, is_held_out, said
from intone.data.starter.letters import practice_names
from intone.data.starter.names import HELD_OUT_NAMES
from intone.data.starter.templates_identity import IDENTITY, IDENTITY_ANSWERS
from intone.data.starter.templates_smalltalk import SMALLTALK, SMALLTALK_ANSWERS, TOPICS
from intone.data.starter.words import TRAINING_WORDS

_INTENTS = tuple(IDENTITY)
_KINDS = tuple(SMALLTALK)
# answers to these copy the topic: half of the time it is any word, or the few topics would be learned by heart
_ANY_TOPIC = ("like", "dislike", "food")
# kinds with many topics are drawn more often
_KIND_WEIGHTS = tuple(3 if kind in TOPICS or kind == "introduction" else 1 for kind in _KINDS)
_POLITE_BEFORE = ("", "", "", "", "Hello. ", "Hi! ", "I have a question. ", "Tell me. ", "Please tell me. ", "Okay. ")
_POLITE_AFTER = ("", "", "", "", "", " I want to know.", " Please tell me.", " Thanks!")


def identity(rng: Random, *, held_out: bool) -> Item:
    """A question about the model itself; key (skill, intent, question as asked), held out by its phrasing."""
    intent = rng.choice(_INTENTS)
    templates = IDENTITY[intent]
    while held_out and not templates.held_out:
        templates = IDENTITY[intent := rng.choice(_INTENTS)]
    number, text = rng.choice(templates.held_out if held_out else templates.training)
    question = rng.choice(_POLITE_BEFORE) + text + rng.choice(_POLITE_AFTER)
    return said("identity", question, IDENTITY_ANSWERS[intent], ("identity", intent, question), number)


def smalltalk(rng: Random, *, held_out: bool) -> Item:
    """Friendly talk; key (skill, kind, topic, template). Held out are topics, names and phrasings."""
    kind = rng.choices(_KINDS, _KIND_WEIGHTS)[0]
    templates = SMALLTALK[kind]
    while True:
        if kind in TOPICS:
            topic = rng.choice(TOPICS[kind])
            if not held_out and kind in _ANY_TOPIC and rng.random() < 0.5:
                topic = rng.choice(TRAINING_WORDS)
            topic_held_out = is_held_out(("smalltalk", kind, topic))
        elif kind == "introduction":
            topic_held_out = held_out
            topic = rng.choice(HELD_OUT_NAMES) if held_out else practice_names(rng, 1)[0]
        else:
            topic, topic_held_out = "", False
        number, text = templates.draw(rng, held_out=held_out)
        if held_out == (topic_held_out or (number, text) in templates.held_out):
            break
    return said(
        "smalltalk",
        text.format(x=topic),
        SMALLTALK_ANSWERS[kind].format(x=topic),
        ("smalltalk", kind, topic, number),
        number,
    )
