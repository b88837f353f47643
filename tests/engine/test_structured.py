import json
import math
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intone.data.chat import SPECIALS
from intone.data.tokenizer import SPLIT_PATTERN, Tokenizer
from intone.engine.engine import Engine
from intone.engine.requests import Request
from intone.engine.structured import Form, FormFailed, Forms, parse_form
from intone.errors import UserError

# tokens that begin or end inside a letter, or reach across what forms distinguish
MERGED = [
    b"ab", b"abc", b"a,", b"12", b"123", b"1,", b"\xc3\xa9", b"\xa9\xc3", b"a\xc3", b"\xa9b", b"\xe6\x97", b"\xa5\xe6",
    b'{"', b'":', b'": ', b'",', b', "', b"[[", b"]]", b'"}', b"true", b"null", b"\n\n", b"  ",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([*(bytes([value]) for value in range(256)), *MERGED], SPLIT_PATTERN)


@pytest.fixture(scope="module")
def forms(tokenizer):
    made = Forms(tokenizer)
    yield made
    made.close()


def written(forms, tokenizer, spec, *, seed=0, max_tokens=150):
    """A text of random tokens that the masks of a form allow -> (its bytes, whether it ended)."""
    matcher = forms.grammar(parse_form(spec)).matcher()
    rng = np.random.default_rng(seed)
    ends = {tokenizer.bos, tokenizer.special("<|assistant_end|>")}
    ids = []
    for _ in range(max_tokens):
        if matcher.is_complete:
            return tokenizer.decode_bytes(ids), True
        allowed = np.flatnonzero(matcher.mask())
        assert len(allowed), "a text that can neither go on nor end"
        # as often the end as anything else: a form that can go on for ever should not
        can_end = ends & set(allowed.tolist())
        if can_end and rng.random() < 0.5:
            return tokenizer.decode_bytes(ids), True
        token = int(rng.choice(allowed))
        if token in ends:
            return tokenizer.decode_bytes(ids), True
        matcher.accept(token)
        ids.append(token)
    return tokenizer.decode_bytes(ids), matcher.is_complete


LETTERS = st.sampled_from(["a", "b", "c", "1", "2", ",", " ", "é", "日", "😀", r"\.", r"\n", "/", "#", '"'])
CLASSES = st.sampled_from(["[ab]", "[a-c0-9]", "[^a]", "[^a-z]", ".", r"\d", "[é-ü]", "[日月]", r"\s"])


def repeated(part):
    return st.tuples(part, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}"])).map(lambda x: f"(?:{x[0]}){x[1]}")


PATTERNS = st.recursive(
    st.one_of(LETTERS, CLASSES),
    lambda part: st.one_of(
        st.lists(part, min_size=2, max_size=4).map("".join),
        st.lists(part, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        repeated(part),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(pattern=PATTERNS, seed=st.integers(0, 2**32))
def test_texts_match_their_regex_or_begin_to(forms, tokenizer, pattern, seed):
    text, has_ended = written(forms, tokenizer, {"regex": pattern}, seed=seed)
    # Rust's \d and \s know all of Unicode, as do Python's
    if has_ended:
        assert regex.fullmatch(pattern, text.decode())
    else:
        assert regex.fullmatch(pattern, text.decode(errors="ignore"), partial=True)


def test_a_regex_is_the_whole_text_with_or_without_anchors(forms, tokenizer):
    for pattern in ("^[ab]$", "[ab]", r"\A[ab]\z"):
        texts = {written(forms, tokenizer, {"regex": pattern}, seed=seed) for seed in range(20)}
        assert texts == {(b"a", True), (b"b", True)}


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(st.text(alphabet="ab,é日😀\"\\\n<|>os{}", max_size=8), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_a_choice_is_one_of_its_texts_and_every_one_is_possible(forms, tokenizer, texts, seed):
    text, has_ended = written(forms, tokenizer, {"choice": texts}, seed=seed)
    assert has_ended and text.decode() in texts
    for text in texts:
        matcher = forms.grammar(parse_form({"choice": texts})).matcher()
        for token in tokenizer.encode(text):
            matcher.accept(token)
        assert matcher.is_complete or matcher.mask()[tokenizer.bos]


STRINGS = st.one_of(
    st.just({"type": "string", "maxLength": 5}),
    st.integers(0, 3).map(lambda low: {"type": "string", "minLength": low, "maxLength": 2 * low}),
    st.just({"type": "string", "pattern": "^[a-c]{1,4}$"}),
)
NUMBERS = st.builds(
    lambda kind, low, more: {"type": kind, "minimum": low, "maximum": low + more},
    st.sampled_from(["integer", "number"]), st.integers(-500, 500), st.integers(0, 999),
)  # fmt: skip
SIMPLE = st.one_of(
    STRINGS, NUMBERS, st.just({"type": "boolean"}), st.just({"type": "null"}),
    st.sets(st.sampled_from([1, "a", None, "é\n\"", (1, "x")]), min_size=1).map(lambda some: {"enum": list(some)}),
    st.just({"const": {"k": [1, "v"]}}),
)  # fmt: skip


def objects(inner):
    def made(properties, required):
        names = [name for name in properties if name in required]
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}

    names = st.sampled_from(["a", "name", "日 key", 'q"', "x/y"])
    return st.builds(made, st.dictionaries(names, inner, max_size=3), st.sets(names))


def arrays(inner):
    return st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip


SCHEMAS = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        objects(inner), arrays(inner), st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some})
    ),
    max_leaves=6,
)


def is_valid(value, schema):
    """JSON Schema for the keywords above, and nothing of the library that is tested."""
    if "anyOf" in schema:
        return any(is_valid(value, some) for some in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return any(json.dumps(value) == json.dumps(some) for some in allowed)
    kinds = {"string": str, "boolean": bool, "null": type(None), "object": dict, "array": list}
    kind = schema["type"]
    if kind in ("integer", "number"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        is_right_kind = is_number and (kind == "number" or value == int(value))
        return is_right_kind and schema["minimum"] <= value <= schema["maximum"]
    if not isinstance(value, kinds[kind]):
        return False
    if kind == "string":
        return (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99)
            and re.search(schema.get("pattern", ""), value) is not None
        )
    if kind == "array":
        is_long_enough = schema["minItems"] <= len(value) <= schema["maxItems"]
        return is_long_enough and all(is_valid(item, schema["items"]) for item in value)
    if kind == "object":
        return set(schema["required"]) <= set(value) <= set(schema["properties"]) and all(
            is_valid(item, schema["properties"][name]) for name, item in value.items()
        )
    return True


@settings(deadline=None, max_examples=150)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_json_is_valid_for_its_schema(forms, tokenizer, schema, seed):
    text, has_ended = written(forms, tokenizer, {"json_schema": schema}, seed=seed, max_tokens=400)
    assert has_ended
    assert is_valid(json.loads(text), schema), text


def test_the_usual_styles_of_json_are_allowed_and_rows_of_blanks_are_not(forms, tokenizer):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}}}

    def fits(text):
        matcher = forms.grammar(parse_form({"json_schema": json.dumps(schema)})).matcher()
        for value in text.encode():
            if not matcher.mask()[value]:
                return False
            matcher.accept(value)
        return bool(matcher.mask()[tokenizer.bos])

    assert fits('{"a": 1, "b": [1, {"c": null}]}') and fits('{"a":1,"b":[1,{"c":null}]}')
    assert not fits('{"a":  1}') and not fits('{"a": 1}\n') and not fits(' {"a": 1}')
    assert not fits('{"a": 1.5}')


@pytest.mark.parametrize("spec", [{"regex": "(?s).*"}, {"json_schema": True}, {"choice": ["<|bos|>", ""]}])
def test_special_tokens_never_stand_for_text_and_ends_only_where_it_may_end(forms, tokenizer, spec):
    matcher = forms.grammar(parse_form(spec)).matcher()
    ends = {tokenizer.bos, tokenizer.special("<|assistant_end|>")}
    for _ in range(20):
        mask = matcher.mask()
        assert mask.shape == (tokenizer.vocab_size,) and mask.dtype == np.bool_
        may_end = "json_schema" not in spec
        for name in SPECIALS:
            token = tokenizer.special(name)
            assert mask[token] == (token in ends and may_end)
        if "regex" not in spec:
            break
        matcher.accept(int(np.flatnonzero(mask[:128])[-3]))


def test_bytes_follow_each_other_only_as_utf8(forms, tokenizer):
    matcher = forms.grammar(parse_form({"regex": "[é日😀]b"})).matcher()
    first = {bytes(tokenizer.decode_bytes([token])) for token in np.flatnonzero(matcher.mask())}
    assert first == {b"\xc3", b"\xe6", b"\xf0", b"\xc3\xa9", b"\xe6\x97"}
    matcher.accept(0xC3)
    second = {bytes(tokenizer.decode_bytes([token])) for token in np.flatnonzero(matcher.mask())}
    # what must come anyway is allowed in the tokenizer's own way to write it, not in every way
    assert second and second <= {b"\xa9", b"\xa9b"}
    matcher = forms.grammar(parse_form({"regex": "(?s).*"})).matcher()
    matcher.accept(0xC3)
    assert not matcher.mask()[tokenizer.bos]  # half a letter is no end


def test_a_token_that_does_not_fit_is_refused_and_changes_nothing(forms):
    matcher = forms.grammar(parse_form({"regex": "[0-9]{2}"})).matcher()
    with pytest.raises(ValueError, match="token 97 does not fit"):
        matcher.accept(97)
    matcher.accept(ord("1"))
    assert not matcher.is_complete
    matcher.accept(ord("2"))
    assert matcher.is_complete


def test_matchers_of_one_form_do_not_share_their_text(forms):
    form = parse_form({"regex": "ab|cd"})
    first, second = forms.grammar(form).matcher(), forms.grammar(form).matcher()
    first.accept(ord("a"))
    second.accept(ord("c"))
    assert first.mask()[ord("b")] and not first.mask()[ord("d")]
    assert second.mask()[ord("d")] and not second.mask()[ord("b")]


def test_masks_are_made_in_another_thread_and_once(forms, monkeypatch):
    matcher = forms.grammar(parse_form({"regex": "[0-9]{2}"})).matcher()
    makers = []
    made = matcher._made
    monkeypatch.setattr(matcher, "_made", lambda: (makers.append(threading.current_thread().name), made())[1])
    assert not matcher.is_ready
    matcher.prepare()
    matcher.prepare()
    matcher.mask()
    assert matcher.is_ready
    assert len(makers) == 1 and makers[0].startswith("intone-masks")


def test_forms_are_compiled_once_and_the_oldest_are_forgotten(tokenizer, monkeypatch):
    forms = Forms(tokenizer)
    compiled = []
    compile_form = forms._compiled
    monkeypatch.setattr(forms, "_compiled", lambda form: (compiled.append(form.text), compile_form(form))[1])
    monkeypatch.setattr("intone.engine.structured.MAX_KEPT", 2)
    for text in ("a", "b", "a", "a", "c", "a", "b"):
        forms.grammar(parse_form({"regex": text})).matcher()
    assert compiled == ["a", "b", "c", "b"]
    forms.close()


def test_many_threads_may_ask_at_once(forms, tokenizer):
    texts = {}

    def work(number):
        texts[number] = [written(forms, tokenizer, {"regex": "[ab]{3}|1,2"}, seed=number) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 6
    assert all(re.fullmatch("[ab]{3}|1,2", text.decode()) for found in texts.values() for text, _ in found)


def test_equal_forms_compare_equal_however_they_were_given():
    schema = {"type": "integer"}
    assert parse_form({"json_schema": schema}) == parse_form({"json_schema": json.dumps(schema)})
    assert parse_form({"choice": ["a", "b"]}) == parse_form({"choice": ("a", "b")})
    assert parse_form({"json_schema": True}) == Form("json_schema", "{}")


@pytest.mark.parametrize(
    "spec, words",
    [
        ("[0-9]", "structured must be an object with one of regex, choice, json_schema"),
        ({}, "structured must be an object with one of"),
        ({"regex": "a", "choice": ["a"]}, "structured must be an object with one of"),
        ({"regexp": "a"}, "unknown form 'regexp'"),
        ({"regex": 5}, "5 must be text, it is a int"),
        ({"regex": "\ud800"}, "half a surrogate pair"),
        ({"choice": "ab"}, "a list of one text or more"),
        ({"choice": []}, "a list of one text or more"),
        ({"choice": ["a", 1]}, "1 must be text"),
        ({"json_schema": "{"}, "json_schema is not a JSON schema: Expecting property name"),
        ({"json_schema": 5}, "json_schema is not a JSON schema: it is a int"),
        ({"json_schema": False}, "json_schema is not a JSON schema: false allows nothing"),
        ({"json_schema": {"maximum": math.nan}}, "json_schema is not a JSON schema: Out of range"),
        ({"json_schema": {"enum": [{1, 2}]}}, "json_schema is not a JSON schema: Object of type set"),
    ],
)
def test_what_is_no_form_is_refused_before_anything_starts(spec, words):
    with pytest.raises(UserError, match=re.escape(words)):
        parse_form(spec)


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"regex": "a("}, "this regex cannot be used: unclosed group"),
        ({"regex": "(?=a)b"}, "this regex cannot be used: look-around, including look-ahead and look-behind, is not"),
        ({"regex": r"(a)\1"}, "this regex cannot be used: backreferences are not supported"),
        ({"json_schema": {"type": "nope"}}, "this json schema cannot be used: Invalid type: nope"),
        ({"json_schema": {"not": {}}}, 'this json schema cannot be used: Unimplemented keys: ["not"]'),
        ({"json_schema": {"type": "string", "format": "zip"}}, "this json schema cannot be used: Unknown format: zip"),
        ({"json_schema": {"$ref": "#/x"}}, "this json schema cannot be used: Pointer '/x' does not exist"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum (5) is greater than maximum (3)"),
        ({"json_schema": {"enum": []}}, "Unsatisfiable schema"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(forms, spec, words):
    for _ in range(2):  # a refusal is not taken for a compiled form
        with pytest.raises(UserError, match=re.escape(words)):
            forms.grammar(parse_form(spec)).matcher()


def test_a_form_that_turns_out_too_complex_fails_instead_of_taking_for_ever(forms):
    matcher = forms.grammar(parse_form({"regex": "(.{0,100}b){0,100}"})).matcher()
    rng = np.random.default_rng(0)
    with pytest.raises(FormFailed, match="too complex"):
        for _ in range(2000):
            matcher.accept(int(rng.choice([ord("a"), ord("b")])))
    with pytest.raises(FormFailed):
        matcher.mask()
    assert matcher.is_complete  # nothing follows


def test_without_the_library_the_request_is_refused_with_the_fix(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    forms = Forms(tokenizer)
    with pytest.raises(UserError, match="need the package llguidance") as raised:
        forms.grammar(parse_form({"regex": "a"})).matcher()
    assert raised.value.fix == "pip install llguidance"
    forms.close()


def test_the_library_is_not_imported_until_a_form_is_compiled():
    code = (
        "import sys, intone.engine.structured as s\n"
        "s.parse_form({'regex': 'a'})\nassert 'llguidance' not in sys.modules, 'imported'"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


# --- inside the engine

PROMPT = [5, 200, 17, 5, 9]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "日", None]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def random_weights(random_model, tokenizer):
    return random_model(vocab_size=tokenizer.vocab_size, depth=1, context=250, dtype=torch.float32, scale=0.2)


@pytest.fixture
def engine_of(tokenizer):
    """Makes engines and closes them after the test."""
    engines = []

    def make(model, **options):
        engines.append(Engine(model, tokenizer, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def test_random_weights_always_write_valid_json(random_weights, engine_of):
    engine = engine_of(random_weights, num_slots=5)
    requests = [
        Request(PROMPT, structured={"json_schema": PERSON}, temperature=temperature, n=n, seed=3, **filters)
        for temperature, n, filters in [(0, 1, {}), (1.0, 8, {}), (3.0, 8, {}), (1.0, 3, {"top_k": 2, "top_p": 0.5})]
    ]
    completions = [completion for samples in engine.generate(requests) for completion in samples]
    assert {completion.reason for completion in completions} == {"stop"}
    for completion in completions:
        assert is_valid(json.loads(completion.text), PERSON), completion.text
    assert len({completion.text for completion in completions}) > 10


def test_regexes_and_choices_hold_and_the_text_ends_with_its_form(random_weights, engine_of):
    engine = engine_of(random_weights)
    specs = [{"regex": "(ab|cd){3}-[0-9]{2}"}, {"choice": ["yes", "no", "日本"]}]
    requests = [Request(PROMPT, structured=spec, n=12, seed=1, temperature=2.0) for spec in specs]
    dates, choices = engine.generate(requests)
    assert all(re.fullmatch("(ab|cd){3}-[0-9]{2}", completion.text) for completion in dates)
    assert {completion.text for completion in choices} == {"yes", "no", "日本"}
    # nothing can follow, so there is no token that only says so
    assert all(completion.reason == "stop" for completion in dates + choices)
    assert all(engine.tokenizer.decode(completion.ids) == completion.text for completion in dates + choices)


def test_a_form_that_may_be_empty_is_not_where_that_is_asked_and_a_complete_one_ends(random_weights, engine_of):
    engine = engine_of(random_weights)
    request = Request(PROMPT, structured={"regex": "(ab|cd)?"}, n=12, seed=1, temperature=2.0, min_tokens=1)
    longer = Request(PROMPT, structured={"choice": ["yes", "no"]}, n=12, seed=1, temperature=2.0, min_tokens=9)
    some, whole = engine.generate([request, longer])
    assert {completion.text for completion in some} == {"ab", "cd"}
    assert {(completion.text, completion.reason) for completion in whole} == {("yes", "stop"), ("no", "stop")}


def test_a_text_that_may_go_on_ends_where_the_model_ends_it(random_weights, engine_of, tokenizer):
    engine = engine_of(random_weights)
    ends = (tokenizer.bos, tokenizer.special("<|assistant_end|>"))
    request = Request(PROMPT, structured={"regex": "[ab]+"}, n=30, seed=2, temperature=2.0)
    completions = engine.generate([request])[0]
    assert all(re.fullmatch("[ab]+", completion.text) for completion in completions)
    assert all(completion.ids[-1] in ends for completion in completions if completion.reason == "stop")
    assert len({len(completion.ids) for completion in completions}) > 3


def test_a_limit_cuts_the_text_and_says_so(random_weights, engine_of):
    engine = engine_of(random_weights)
    spec = {"regex": "[0-9]{30}"}
    cut, whole = engine.generate([Request(PROMPT, structured=spec, max_tokens=n, seed=0) for n in (7, 30)])
    assert (cut[0].reason, len(cut[0].ids)) == ("length", 7)
    assert whole[0].reason == "stop" and re.fullmatch("[0-9]{30}", whole[0].text)
    assert whole[0].text.startswith(cut[0].text)


def test_tokens_are_drawn_as_the_model_says_among_those_allowed(random_weights, engine_of):
    request = Request(PROMPT, structured={"regex": "[abc]x"}, n=1500, seed=4, max_tokens=1)
    completions = engine_of(random_weights).generate([request])[0]
    allowed = [ord("a"), ord("b"), ord("c")]
    log_probs = random_weights.logits(torch.tensor([PROMPT]))[0, -1].detach().log_softmax(-1)
    expected = log_probs[allowed].softmax(-1).numpy() * 1500
    counts = np.array([sum(completion.ids[0] == token for completion in completions) for token in allowed])
    # chi-square with 2 degrees of freedom: above 25 once in 250,000
    assert counts.sum() == 1500 and ((counts - expected) ** 2 / expected).sum() < 25
    # the reported numbers are the model's own, without the form
    assert completions[0].logprobs[0] == pytest.approx(float(log_probs[completions[0].ids[0]]), abs=1e-4)


def test_other_texts_in_the_batch_do_not_notice(random_weights, engine_of):
    plain = [Request([7, 8, 9], max_tokens=20, seed=5, n=2), Request(PROMPT, max_tokens=9, temperature=0)]
    shaped = Request(PROMPT, structured={"json_schema": PERSON}, seed=6, n=3)
    alone = [[c.ids for c in samples] for samples in engine_of(random_weights).generate(plain)]
    together = engine_of(random_weights, num_slots=4).generate([*plain, shaped])
    assert [[c.ids for c in samples] for samples in together[:2]] == alone
    by_itself = engine_of(random_weights).generate([shaped])[0]
    assert [c.ids for c in together[2]] == [c.ids for c in by_itself]


def test_guessing_ahead_changes_nothing(random_weights, engine_of):
    request = Request(list(b'{"name": "ab", "age": 12, {"name": '), structured={"json_schema": PERSON}, seed=8)
    texts = {engine_of(random_weights, num_guesses=guesses).generate([request])[0][0].text for guesses in (0, 4)}
    assert len(texts) == 1


def test_a_form_that_is_too_complex_fails_its_request_and_no_other(random_weights, engine_of):
    engine = engine_of(random_weights)
    bad = Request(PROMPT, structured={"regex": "(?:(?:a?){100}){100}"}, temperature=0, logit_bias={ord("a"): 50}, n=2)
    failed, fine = engine.generate([bad, Request(PROMPT, structured={"choice": ["a"]})])
    assert [completion.reason for completion in failed] == ["error"] * 2
    assert "too complex" in failed[0].error
    assert fine[0].text == "a"
    assert engine.healthy and engine.generate([Request(PROMPT, structured={"choice": ["b"]})])[0][0].text == "b"


def test_a_form_and_biases_that_leave_no_token_fail_the_request(random_weights, engine_of):
    request = Request(PROMPT, structured={"choice": ["a"]}, logit_bias={ord("a"): -math.inf})
    completion = engine_of(random_weights).generate([request])[0][0]
    assert completion.reason == "error"
    assert completion.error == "the request's biases and form leave no token to choose at position 5"


def test_forms_that_are_none_are_refused_before_anything_starts(random_weights, engine_of):
    engine = engine_of(random_weights)
    with pytest.raises(UserError, match="this regex cannot be used: unclosed group"):
        engine.generate([Request(PROMPT, max_tokens=2), Request(PROMPT, structured={"regex": "("})])
    assert engine.num_token_forwards == 0
    with pytest.raises(UserError, match="unknown form 'regexp'"):
        Request(PROMPT, structured={"regexp": "a"})
