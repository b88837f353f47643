"""Skills that look inside words: spelling, counting a letter, reversing, sorting.

Words always stand behind a space, in questions and answers, so that a tokenizer cuts them alike wherever they are.
"""

from random import Random
from typing import Any

from intone.data.starter.item import Item, calculated, dressed, is_held_out, listed, said
from intone.data.starter.names import NAMES, TRAINING_NAMES
from intone.data.starter.templates_letters import COUNTING, REVERSING, SORTING, SPELLING
from intone.data.starter.words import HELD_OUT_WORDS, LONGEST_SPELLED, TRAINING_WORDS, WORDS

# guess: invented words stop the model from learning each word's letters by heart
INVENTED_SHARE = 0.35
INVENTED_NAMES_SHARE = 0.6
_KNOWN = frozenset(WORDS) | {name.lower() for name in NAMES}
# pieces of words joined by chance must not make a rude one: invented words with these in them are thrown away
_UNLUCKY = listed(
    "ass bit bug coc coo cum cun dic dyk fag fuc hor jap kik nig paki pis poo pus rap sex shi slu tit twa wan who"
)
_SORTED_WORDS = tuple(word for word in TRAINING_WORDS if len(word) <= 8)


def invented_word(rng: Random) -> str:
    """The head of one training word joined to the tail of another: 4-10 letters, in no word list."""
    while True:
        head, tail = rng.choice(TRAINING_WORDS), rng.choice(TRAINING_WORDS)
        word = head[: rng.randint(2, 5)] + tail[-rng.randint(2, 5) :]
        if 4 <= len(word) <= LONGEST_SPELLED and word not in _KNOWN and not any(part in word for part in _UNLUCKY):
            return word


def invented_name(rng: Random) -> str:
    """The head of one training name joined to the tail of another: 3-9 letters, in no list."""
    while True:
        head, tail = rng.choice(TRAINING_NAMES), rng.choice(TRAINING_NAMES)
        name = head[: rng.randint(1, 4)] + tail[-rng.randint(2, 4) :].lower()
        if 3 <= len(name) <= 9 and name.lower() not in _KNOWN and not any(part in name.lower() for part in _UNLUCKY):
            return name


def practice_names(rng: Random, num: int) -> list[str]:
    """num different names for training, most of them invented: known ones would be learned by heart as units.

    With the 219 training names alone a model copied 0 of 29 names it had never seen, see LOG.md.
    """
    names: list[str] = []
    while len(names) < num:
        name = invented_name(rng) if rng.random() < INVENTED_NAMES_SHARE else rng.choice(TRAINING_NAMES)
        if name not in names:
            names.append(name)
    return names


def practice_word(rng: Random, *, held_out: bool) -> str:
    """A word to look inside: a held-out one for evaluation, a training or invented one otherwise."""
    if held_out:
        return rng.choice(HELD_OUT_WORDS)
    if rng.random() < INVENTED_SHARE:
        return invented_word(rng)
    return rng.choice(TRAINING_WORDS)


def spelled(word: str) -> str:
    """garden -> g-a-r-d-e-n."""
    return "-".join(word)


def spelling(rng: Random, *, held_out: bool) -> Item:
    """A word letter by letter; key (skill, word)."""
    word = practice_word(rng, held_out=held_out)
    number, text = SPELLING["spell"].draw(rng, held_out=held_out)
    answer = f"You spell {word} {spelled(word)}."
    return said("spelling", dressed(rng, text.format(word=word)), answer, ("spelling", word), number)


def reversing(rng: Random, *, held_out: bool) -> Item:
    """A word backwards, after its letters in order; key (skill, word)."""
    word = practice_word(rng, held_out=held_out)
    number, text = REVERSING["reverse"].draw(rng, held_out=held_out)
    answer = f"The word {word} is {spelled(word)}, backwards {spelled(word[::-1])}."
    return said("reversing", dressed(rng, text.format(word=word)), answer, ("reversing", word), number)


def counting(rng: Random, *, held_out: bool) -> Item:
    """How often a letter is in a word, by the calculator; key (skill, word, letter)."""
    word = practice_word(rng, held_out=held_out)
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < 0.15 else rng.choice(word)
    number, text = COUNTING["count"].draw(rng, held_out=held_out)
    count = word.count(letter)
    return calculated(
        "counting",
        dressed(rng, text.format(word=word, letter=letter)),
        # the space changes no count, and lets the word be cut into the pieces it has in the question
        call=f'" {word}".count("{letter}")',
        output=str(count),
        answer=f"The letter {letter} appears {count} time{'' if count == 1 else 's'} in {word}.",
        key=("counting", word, letter),
        template=number,
    )


def sorting(rng: Random, *, held_out: bool) -> Item:
    """3-6 words or numbers in order; key (skill, direction, items in sorted order)."""
    while True:
        numbers = rng.random() < 0.55
        down = rng.random() < 0.2
        length = rng.randint(3, 6)
        items = _some_numbers(rng, length) if numbers else _some_words(rng, length, held_out=held_out)
        key = ("sorting", "down" if down else "up", *sorted(items))
        if is_held_out(key) == held_out:
            break
    kind = ("numbers" if numbers else "words") + (" down" if down else "")
    number, text = SORTING[kind].draw(rng, held_out=held_out)
    question = text.format(items=", ".join(map(str, items)))
    in_order = sorted(items, reverse=down)
    answer = f"Sorted: {', '.join(map(str, in_order))}."
    if not numbers:
        # with the first letters written out, order is a matter of 26 letters, not of thousands of words
        answer = f"By letter: {_lettered(items)}. Sorted: {_lettered(in_order)}."
    return said("sorting", dressed(rng, question), answer, key, number)


def _lettered(words: list[Any]) -> str:
    """a apple, p pear."""
    return ", ".join(f"{word[0]} {word}" for word in words)


def _some_numbers(rng: Random, length: int) -> list[int]:
    return rng.sample(range(1, 1000 if rng.random() < 0.05 else 100), length)


def _some_words(rng: Random, length: int, *, held_out: bool) -> list[str]:
    """Words that differ in their first letters (nine lists in ten), or else in the first two letters."""
    width = 1 if rng.random() < 0.9 else 2
    heads: set[str] = set()
    words: list[str] = []
    if held_out and rng.random() < 0.5:
        words.append(rng.choice(HELD_OUT_WORDS))
        heads.add(words[0][:width])
    while len(words) < length:
        word = rng.choice(_SORTED_WORDS)
        if word[:width] not in heads:
            heads.add(word[:width])
            words.append(word)
    rng.shuffle(words)
    return words
