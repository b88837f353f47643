import math

import pytest

from intone.data.chat import Message
from intone.engine.requests import Request
from intone.errors import UserError


@pytest.mark.parametrize(
    "options, words",
    [
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 5}, "prompt is a int"),
        ({"max_tokens": 0}, "max_tokens is 0, it must be at least 1"),
        ({"max_tokens": 2.5}, "max_tokens 2.5 is not a whole number"),
        ({"min_tokens": -1}, "min_tokens is -1, it must be at least 0\n  fix: 0 lets the model end its answer at once"),
        (
            {"min_tokens": 9, "max_tokens": 8},
            "min_tokens 9 is more than max_tokens 8\n  fix: use a min_tokens of 8 or less, or a larger max_tokens",
        ),
        ({"n": 0}, "n is 0, it must be at least 1"),
        ({"top_k": 0}, "top_k is 0, it must be at least 1"),
        ({"temperature": math.nan}, "temperature nan is not a finite number"),
        ({"temperature": math.inf}, "temperature inf is not a finite number"),
        ({"temperature": -0.1}, "temperature is -0.1, it must be at least 0"),
        ({"temperature": "hot"}, "temperature 'hot' is not a number"),
        ({"top_p": 0}, "top_p 0 keeps no token"),
        ({"top_p": 1.1}, "top_p is 1.1, it must be between 0 and 1"),
        ({"min_p": -1}, "min_p is -1, it must be between 0 and 1"),
        ({"seed": "x"}, "seed 'x' is not a whole number"),
        ({"stop": [""]}, "stop '' is neither"),
        ({"stop": [1.5]}, "stop 1.5 is neither"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
    ],
)
def test_values_out_of_range_are_refused_with_the_value(options, words):
    with pytest.raises(UserError) as caught:
        Request(**{"prompt": [1], **options})
    assert words in str(caught.value)


def test_every_kind_of_prompt_and_stop_is_accepted():
    for prompt in ([1, 2], (1, 2), "text", [Message("user", "hi")]):
        Request(prompt)
    assert Request([1], stop="a").stops == ("a",)
    assert Request([1], stop=5).stops == (5,)
    assert Request([1], stop=["a", 5]).stops == ("a", 5)
