"""The story skill: a short story, then a question about who, where or what."""

from random import Random

from intone.data.starter.item import Item, said
from intone.data.starter.letters import practice_names
from intone.data.starter.names import HELD_OUT_NAMES, TRAINING_NAMES
from intone.data.starter.templates_story import FRAMES, OPENINGS, STORY
from intone.data.starter.world import new_world

_Question = tuple[str, dict[str, str], str]  # kind, words for the template, answer

# how often each kind is asked when the story allows it; places first, they need the latest of many sentences
_WEIGHTS = {
    "where person": 3.0,
    "where thing": 4.0,
    "who has": 3.0,
    "who took": 1.0,
    "what took": 1.0,
    "whom gave": 1.5,
    "what gave": 1.5,
    "feels": 1.5,
    "who is in": 1.5,
}


def story(rng: Random, *, held_out: bool) -> Item:
    """A story of 4-8 sentences and a question; key (skill, story, kind, words asked for).

    Held-out stories have at least one person whose name training never shows.
    """
    return story_items(rng, held_out=held_out, num_questions=1)[0]


def story_items(rng: Random, *, held_out: bool, num_questions: int) -> list[Item]:
    """A story with its question, then up to num_questions - 1 more questions about the same story.

    The later items hold only their question: they make sense behind the first one. A story costs a hundred
    tokens to read and each answer teaches, so several answers per story teach more in the same time.
    """
    while True:
        world = new_world(rng, _people(rng, held_out=held_out))
        sentences = world.sentences(rng.randint(4, 8))
        told = rng.choice(OPENINGS) + " ".join(sentences)
        if not held_out or any(name in told for name in world.people if name in HELD_OUT_NAMES):
            break
    items: list[Item] = []
    for kind, words, answer in _chosen(rng, world.questions(), num_questions):
        number, text = STORY[kind].draw(rng, held_out=held_out)
        question = text.format(**words)
        if not items:
            question = rng.choice(FRAMES).format(story=told, question=question)
        items.append(said("story", question, answer, ("story", told, kind, *words.values()), number))
    return items


def _chosen(rng: Random, questions: list[_Question], num: int) -> list[_Question]:
    """num different questions of the story (or all there are), kinds drawn by their weights."""
    left = list(questions)
    chosen: list[_Question] = []
    while left and len(chosen) < num:
        kinds = sorted({kind for kind, _, _ in left})
        wanted = rng.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
        question = rng.choice([entry for entry in left if entry[0] == wanted])
        left.remove(question)
        chosen.append(question)
    return chosen


def _people(rng: Random, *, held_out: bool) -> list[str]:
    """2-4 different names; for evaluation at least one held-out one, and each other with chance one half."""
    num = rng.randint(2, 4)
    if not held_out:
        return practice_names(rng, num)
    num_new = 1 + sum(rng.random() < 0.5 for _ in range(num - 1))
    people = rng.sample(HELD_OUT_NAMES, num_new) + rng.sample(TRAINING_NAMES, num - num_new)
    rng.shuffle(people)
    return people
