"""The worker's end of the conversation: commands are read strictly, and nothing else stands on stdout."""

import io
import json
import subprocess
import sys

import pytest

from intone.blocks import Exchange, whole_number
from intone.errors import UserError
from intone.records import Outcome


def exchange(*lines: str) -> Exchange:
    return Exchange(io.StringIO("".join(line + "\n" for line in lines)), io.StringIO())


def test_blocks_come_in_order_until_quit():
    talk = exchange('{"do": "block", "steps": 5}', '{"do": "block"}', '{"do": "quit"}', '{"do": "block"}')
    assert list(talk.blocks(("steps",))) == [{"steps": 5}, {}]


def test_the_end_of_stdin_is_the_end():
    assert list(exchange('{"do": "block"}').blocks(())) == [{}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps 5", "'steps 5' is no command"),
        ("[1]", "'[1]' is no command"),
        ('{"steps": 5}', "'{\"steps\": 5}' is no command"),
        ('{"do": "blok"}', "unknown command 'blok'"),
        ('{"do": "block", "stepps": 5}', "unknown key of a block 'stepps'"),
    ],
)
def test_what_is_no_command_is_refused_instead_of_guessed(line, message):
    with pytest.raises(UserError) as caught:
        list(exchange(line).blocks(("steps",)))
    assert caught.value.message == message


@pytest.mark.parametrize("value", [0, -3, 2.5, "5", True, None])
def test_a_number_of_steps_is_a_whole_number_above_0(value):
    with pytest.raises(UserError):
        whole_number({"steps": value}, "steps", 1)


def test_an_absent_number_of_steps_is_the_default():
    assert whole_number({}, "steps", 7) == 7


def test_answers_are_one_line_each():
    talk = exchange()
    talk.ready(1.5, 0.25, {"threads": 2})
    talk.fail(Outcome("out_of_memory", 3, "memory\nran out", "buy some"))
    first, second = talk.answers.getvalue().splitlines()
    assert json.loads(first) == {"ready": True, "first_s": 1.5, "warm_s": 0.25, "facts": {"threads": 2}}
    assert json.loads(second) == {"error": "memory\nran out", "outcome": "out_of_memory", "fix": "buy some"}


def test_what_other_code_prints_goes_to_stderr():
    code = (
        "import os; from intone.blocks import Exchange; talk = Exchange.on_standard_streams();"
        "print('hello', flush=True);"
        "os.system('echo from below'); talk.answer({'a': 1})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '{"a": 1}\n'
    assert sorted(done.stderr.splitlines()) == ["from below", "hello"]
