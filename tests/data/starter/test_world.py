"""Stories: an independent reader, who sees only the sentences, comes to the same answers."""

import re
from random import Random

from intone.data.starter.names import TRAINING_NAMES
from intone.data.starter.world import new_world

GO = "went to|walked to|ran to|moved to|hurried to|came to|rushed to"


def read(sentences: list[str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(place of each person, holder of each thing, place of each thing lying about), from the text alone."""
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    lies_in: dict[str, str] = {}
    for sentence in sentences:
        if found := re.search(rf"(\w+) (?:{GO}) the (\w+)\.", sentence):
            where[found[1]] = found[2]
        elif found := re.search(r"(\w+) (?:took|picked up|grabbed|got) the (\w+)\.", sentence):
            assert found[2] not in holder
            assert found[2] not in lies_in or lies_in[found[2]] == where[found[1]]
            lies_in.pop(found[2], None)
            holder[found[2]] = found[1]
        elif found := re.search(r"(\w+) (?:left|put|dropped|placed) the (\w+) in the (\w+)\.", sentence):
            assert holder.pop(found[2]) == found[1]
            assert where[found[1]] == found[3]
            lies_in[found[2]] = found[3]
        elif found := re.search(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.", sentence):
            assert holder[found[2]] == found[1]
            assert where.get(found[1], where.get(found[3])) == where.get(found[3], where.get(found[1]))
            holder[found[2]] = found[3]
        elif found := re.search(r"^The (\w+) was in the (\w+)\.", sentence):
            lies_in[found[1]] = found[2]
    return where, holder, lies_in


def test_answers_follow_from_the_sentences():
    rng = Random(17)
    kinds = set()
    for _ in range(1_500):
        world = new_world(rng, rng.sample(TRAINING_NAMES, 3))
        sentences = world.sentences(rng.randint(4, 11), prose=rng.random() < 0.5)
        where, holder, lies_in = read(sentences)
        for kind, words, answer in world.questions():
            kinds.add(kind)
            if kind == "where person":
                assert answer == f"Now {words['p']} is in the {where[words['p']]}."
            elif kind == "where thing":
                place = lies_in.get(words["t"]) or where[holder[words["t"]]]
                assert answer == f"Now the {words['t']} is in the {place}."
            elif kind == "who has":
                assert answer == f"Now {holder[words['t']]} has the {words['t']}."
            elif kind == "who is in":
                inside = [person for person, place in where.items() if place == words["place"]]
                assert [f"Now {person} is in the {words['place']}." for person in inside] == [answer]
    assert len(kinds) == 9


def test_questions_about_takings_and_gifts_have_one_answer():
    rng = Random(19)
    for _ in range(800):
        world = new_world(rng, rng.sample(TRAINING_NAMES, 4))
        text = " ".join(world.sentences(9))
        for kind, words, answer in world.questions():
            take = r"(?:took|picked up|grabbed|got)"
            give = r"(?:gave|handed|passed)"
            pattern = {
                "who took": rf"(\w+) {take} the {words.get('t')}\.",
                "what took": rf"{words.get('p')} {take} the (\w+)\.",
                "whom gave": rf"{words.get('p')} {give} the {words.get('t')} to (\w+)\.",
                "what gave": rf"{words.get('p')} {give} the (\w+) to {words.get('q')}\.",
                "feels": rf"{words.get('p')} (?:felt|was|looked|seemed) (\w+)\.",
            }.get(kind)
            if pattern is None:
                continue
            found = re.findall(pattern, text)
            assert len(found) == 1 or kind == "feels"
            assert re.search(rf"\b{found[-1]}\.$", answer)


def test_a_question_kind_is_asked_only_when_the_story_decides_it():
    rng = Random(23)
    world = new_world(rng, ["Anna", "Ben"])
    assert world.questions() == []
    world.holder["lamp"] = "Anna"
    assert [kind for kind, _, _ in world.questions()] == ["who has"]
    world.where["Anna"] = "attic"
    assert {kind for kind, _, _ in world.questions()} == {"who has", "where person", "who is in", "where thing"}
