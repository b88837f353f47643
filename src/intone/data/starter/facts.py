"""Small tables of facts, asked for in many phrasings; some phrasings are held out."""

from random import Random

from intone.data.starter.facts_tables import RELATIONS, filled
from intone.data.starter.item import Item, Templates, dressed, is_held_out, said


def _with_numbers() -> dict[str, Templates]:
    made: dict[str, Templates] = {}
    first = 0
    for name, relation in RELATIONS.items():
        made[name] = Templates(relation.questions, first=first)
        first += len(relation.questions)
    return made


QUESTIONS = _with_numbers()
# drawing relations by less than their size keeps small tables from being forgotten
_NAMES = tuple(RELATIONS)
_WEIGHTS = tuple(len(relation.values) ** 0.75 for relation in RELATIONS.values())


def facts(rng: Random, *, held_out: bool) -> Item:
    """A known fact; key (skill, relation, subject, template).

    Held out are whole phrasings, and for trained phrasings a tenth of the subjects.
    """
    while True:
        name = rng.choices(_NAMES, _WEIGHTS)[0]
        relation, questions = RELATIONS[name], QUESTIONS[name]
        number, text = questions.draw(rng, held_out=held_out)
        subject, _ = rng.choice(relation.pairs)
        key = ("facts", name, subject, number)
        if (is_held_out(key) or (number, text) in questions.held_out) == held_out:
            break
    return said("facts", dressed(rng, filled(text, subject)), relation.state(subject), key, number)


def statements(rng: Random, num: int) -> list[str]:
    """Facts of one relation as sentences, num at most, no two alike."""
    relation = RELATIONS[rng.choices(_NAMES, _WEIGHTS)[0]]
    chosen = rng.sample(relation.pairs, min(num, len(relation.pairs)))
    return [relation.state(subject) for subject, _ in chosen]
