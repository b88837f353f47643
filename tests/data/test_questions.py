"""Questions that can be checked: read strictly, never both learned and measured, and what counts as right."""

import json
from typing import get_args

import pytest

from intone.config import RolloutConfig
from intone.data.questions import Questions, check_named, key_of, parse_question
from intone.data.starter import SKILLS, eval_items
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.errors import UserError
from intone.settings import Skill

TOKENIZER = Tokenizer([bytes([value]) for value in range(256)], SPLIT_PATTERN)
CONFIG = RolloutConfig(prompts=3, samples=2, max_tokens=9, skills=("sorting", "story"), num_items=20)


def from_file(tmp_path, rows, val=(), **changes):
    paths = {}
    for name, entries in (("sums", rows), ("held", val)):
        path = paths[name] = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in entries))
    fields = {"prompts": 3, "samples": 2, "max_tokens": 9, "files": (str(paths["sums"]),)}
    fields |= {"val_files": (str(paths["held"]),)} if val else {}
    return Questions(RolloutConfig(**fields | changes), 5, TOKENIZER, 64)


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("9-3 is 6 #### 1,234", "so it is\n#### 1234.0", True),
        ("9-3 is 6 #### 1,234", "so it is 1234", False),  # the file's answers have a mark, so must these
        ("#### 7", "#### 7.\nmore", True),
        ("72", "That makes $72.00.", True),
        ("72", "72 of 80", False),  # the last number counts
        ("3", "10-3", True),
        ("-3", "It is -3", True),
        ("3", "no idea", False),
        ("123456789012345678901234567890", "123456789012345678901234567891", False),
        ("Paris", " Paris\n", True),
        ("Paris", "It is Paris", False),
        ("__import__('os').abort()", "__import__('os').abort()", True),  # compared, never run
    ],
)
def test_what_counts_as_right(answer, text, is_right):
    assert parse_question({"question": "?", "answer": answer}, "sums").is_right(text) is is_right


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "4"}, "a row needs `messages` or `question`, one of them, and `answer`"),
        ({"question": "2+2"}, "`answer` must be a text or a number, after a question"),
        ({"question": "2+2", "answer": True}, "`answer` must be a text or a number, after a question"),
        ({"question": " ", "answer": "4"}, "`question` must be a text"),
        ({"messages": [{"role": "robot", "content": "hm"}], "answer": "4"}, "unknown role 'robot'"),
        ({"messages": [{"role": "assistant", "content": "4"}], "answer": "4"}, "message 1 has role 'assistant'"),
        (["2+2"], "a row needs `messages`"),
    ],
)
def test_a_row_that_is_no_question_is_refused_with_its_line(tmp_path, row, message):
    with pytest.raises(UserError, match="sums.jsonl, line 2") as caught:
        from_file(tmp_path, [{"question": "1+1", "answer": 2}, row])
    assert message in caught.value.message


def test_a_conversation_may_hold_its_answer_as_its_last_message():
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    question = parse_question({"messages": talk}, "talk")
    assert ([message.role for message in question.asked], question.answer) == (["user"], "Hello")
    assert parse_question({"messages": talk, "answer": "Hey"}, "talk").answer == "Hey"


def test_questions_of_skills_depend_on_the_seed_and_their_number_alone_and_are_never_held_out():
    questions = Questions(CONFIG, 5, TOKENIZER, 512)
    drawn = [questions.at(number) for number in range(40)]
    assert [question.kind for question in drawn[:4]] == ["sorting", "story", "sorting", "story"]
    assert Questions(CONFIG, 5, TOKENIZER, 512).at(17) == drawn[17]
    assert Questions(CONFIG, 6, TOKENIZER, 512).at(17) != drawn[17]
    keys = {key_of(question) for question in drawn}
    assert len(keys) == 40
    assert not keys & {key_of(entry) for group in questions.held_out.values() for entry in group}
    assert {kind: len(group) for kind, group in questions.held_out.items()} == dict.fromkeys(SKILLS, 20)  # all of them
    assert all(question.is_right(question.answer) for question in drawn)
    # those that `intone eval` asks
    asked = [item.answer for item in eval_items("story", 0, 20)]
    assert [entry.answer for entry in questions.held_out["story"]] == asked


def test_questions_that_fill_the_context_are_drawn_again():
    questions = Questions(CONFIG, 5, TOKENIZER, 230)
    assert max(len(questions.prompt(questions.at(number))) for number in range(60)) < 230
    with pytest.raises(UserError, match="no question of the skill story fits"):
        Questions(CONFIG, 5, TOKENIZER, 40).at(1)


def test_questions_of_files_come_all_in_every_epoch_in_a_new_order(tmp_path):
    rows = [{"question": f"{n}+{n}", "answer": 2 * n, "note": "not read"} for n in range(60)]
    questions = from_file(tmp_path, [*rows, rows[3]])
    held_out = {entry.asked[0].content for entry in questions.held_out["sums"]}
    num = 60 - len(held_out)
    epochs = [[questions.at(number).asked[0].content for number in range(num * e, num * (e + 1))] for e in (0, 1)]
    assert 1 <= len(held_out) <= 15
    assert set(epochs[0]) == set(epochs[1]) == {row["question"] for row in rows} - held_out
    assert epochs[0] != epochs[1] and len(set(epochs[0])) == num


def test_held_out_questions_that_are_given_are_not_learned_and_long_ones_are_left_out(tmp_path, capsys):
    rows = [{"question": f"{n}+{n}", "answer": 2 * n} for n in range(9)]
    questions = from_file(tmp_path, [*rows, {"question": "long " * 20, "answer": "x"}], val=rows[:2], num_items=1)
    assert {questions.at(number).asked[0].content for number in range(7)} == {f"{n}+{n}" for n in range(2, 9)}
    assert [len(group) for group in questions.held_out.values()] == [1]
    assert "1 of 10 questions are left out: they fill the context of 64 tokens" in capsys.readouterr().err
    with pytest.raises(UserError, match="there are no questions to learn from: all are held out"):
        from_file(tmp_path, rows[:2], val=rows[:2])


@pytest.mark.parametrize(
    ("data", "val", "message"),
    [
        (("starter",), ("x.jsonl",), "--val is for questions from files"),
        (("starter", "x.jsonl"), (), "questions come from the starter or from files, not both"),
        (("notes.txt",), (), "questions are read from .jsonl files, not from notes.txt"),
        (("gone.jsonl",), (), "gone.jsonl does not exist"),
        (("smoltalk",), (), "smoltalk has no answers to check"),
        (("starter:0.5,x.jsonl:0.5",), (), "questions with answers are not mixed by shares"),
    ],
)
def test_data_that_holds_no_questions_is_refused(tmp_path, monkeypatch, data, val, message):
    monkeypatch.chdir(tmp_path)
    for name in ("x.jsonl", "notes.txt"):
        (tmp_path / name).write_text("hm\n")
    with pytest.raises(UserError) as caught:
        check_named(data, val)
    assert message in caught.value.message
    assert caught.value.fix, "what to do instead"


def test_the_skills_that_can_be_named_are_the_starters():
    assert get_args(Skill) == SKILLS
