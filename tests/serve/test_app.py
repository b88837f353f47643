"""OpenAI's own client drives every feature, against a real engine behind a real socket."""

import json

import openai
import pytest
from tests.serve.models import TOKENIZER

from intone.serve.bodies import ChatBody, CompletionBody

HELLO = [{"role": "user", "content": "hello"}]
MODEL = "tiny/sft"


def chat(client, **settings):
    asked = {"model": MODEL, "messages": HELLO, "max_tokens": 24, "seed": 3, **settings}
    return client.chat.completions.create(**asked)


def complete(client, **settings):
    return client.completions.create(**{"model": MODEL, "prompt": "one two", "max_tokens": 24, "seed": 3, **settings})


def streamed(chunks):
    """Everything that a chat's chunks say, by choice -> {index: (text, finish reason)}, and the usage or None."""
    texts, reasons, usage = {}, {}, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts.setdefault(choice.index, []).append(choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in reasons, "one end per choice"
                reasons[choice.index] = choice.finish_reason
    return {index: ("".join(parts), reasons[index]) for index, parts in texts.items()}, usage


def test_a_stream_says_what_the_whole_answer_says(client):
    settings = dict(temperature=1.0, n=3)
    whole = chat(client, **settings)
    texts, usage = streamed(chat(client, stream=True, stream_options={"include_usage": True}, **settings))
    assert texts == {choice.index: (choice.message.content, choice.finish_reason) for choice in whole.choices}
    assert len({text for text, _ in texts.values()}) == 3, "samples differ"
    assert 24 < usage.completion_tokens == whole.usage.completion_tokens <= 3 * 24
    assert usage.prompt_tokens == whole.usage.prompt_tokens == 9
    assert usage.prompt_tokens_details.cached_tokens == 8, "the prompt was there from the first time"


def test_the_same_seed_gives_the_same_text_and_another_seed_another(client):
    first, again, other = (chat(client, seed=seed, temperature=1.0) for seed in (5, 5, 6))
    texts = [answer.choices[0].message.content for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_a_request_without_sampling_gets_the_servers(client, server):
    named = chat(client, temperature=0.6, extra_body={"top_k": 50})
    assert chat(client).choices[0].message.content == named.choices[0].message.content
    assert client.models.list().data[0].defaults == {"temperature": 0.6, "top_k": 50}
    everything = chat(client, temperature=0.6, extra_body={"top_k": None})
    assert everything.choices[0].message.content != named.choices[0].message.content


def test_a_stop_text_ends_an_answer_and_is_left_out(client):
    text = chat(client, temperature=0).choices[0].message.content
    stop = text[3:5]
    cut = chat(client, temperature=0, stop=[stop, "never-said"])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    texts, _ = streamed(chat(client, temperature=0, stop=stop, stream=True))
    assert texts == {0: (text[: text.index(stop)], "stop")}


def test_a_stop_token_ends_an_answer(client):
    answer = chat(client, temperature=0, logprobs=True).choices[0]
    third = answer.logprobs.content[2].bytes[0]
    cut = chat(client, temperature=0, logprobs=True, extra_body={"stop_token_ids": [third]}).choices[0]
    assert cut.finish_reason == "stop" and len(cut.logprobs.content) <= 3


def test_logprobs_of_a_chat_are_those_of_its_tokens(client):
    answer = chat(client, temperature=0, logprobs=True, top_logprobs=4).choices[0]
    entries = answer.logprobs.content
    said = b"".join(bytes(entry.bytes) for entry in entries)
    assert said.decode(errors="replace") == answer.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 4
        likeliest = entry.top_logprobs[0]
        assert likeliest.bytes == entry.bytes, "temperature 0 takes the likeliest"
        assert likeliest.logprob == pytest.approx(entry.logprob, abs=1e-5)  # of float32, summed in two ways
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
    chunks = list(chat(client, temperature=0, logprobs=True, top_logprobs=4, stream=True))
    parts = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [entry for part in parts for entry in part] == entries


def test_logprobs_of_a_completion_have_the_old_form(client):
    choice = complete(client, temperature=0, logprobs=2).choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) > 1
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    assert all(1 <= len(top) <= 2 for top in found.top_logprobs)


def test_penalties_biases_and_filters_reach_the_engine(client):
    plain = chat(client, temperature=0).choices[0].message.content
    letter = ord("k")
    biased = chat(client, temperature=0, logit_bias={str(letter): 100})
    assert biased.choices[0].message.content == "k" * 24
    penalised = chat(client, temperature=0, logit_bias={str(letter): 1.0}, frequency_penalty=2, presence_penalty=2)
    assert penalised.choices[0].message.content != plain
    nearly_greedy = chat(client, temperature=2, extra_body={"top_k": 1})
    assert nearly_greedy.choices[0].message.content == plain
    assert chat(client, temperature=2, extra_body={"min_p": 1.0}).choices[0].message.content == plain
    assert chat(client, temperature=2, top_p=1e-9).choices[0].message.content == plain
    repeated = chat(client, temperature=0, extra_body={"repetition_penalty": 5.0})
    assert repeated.choices[0].message.content != plain


def test_an_answer_may_be_empty_unless_least_tokens_are_asked_for(client):
    at_once = {str(TOKENIZER.special("<|assistant_end|>")): 100}
    assert chat(client, logit_bias=at_once).choices[0].message.content == ""
    answer = chat(client, logit_bias=at_once, extra_body={"min_tokens": 1})
    # the end has its bias as soon as it may come
    assert len(answer.choices[0].message.content) == 1 and answer.usage.completion_tokens == 2


def test_the_two_names_of_the_limit_mean_the_same(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model=MODEL, messages=HELLO, **{name: 5})
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (5, "length")


def test_without_a_limit_a_chat_goes_on_to_the_end_of_the_context(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"min_tokens": 247})
    assert answer.usage.total_tokens == 256


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("one two", 8), ([256, 104, 105], 3), (["one", "three"], 10), ([[256, 104], [256]], 3)]
)
def test_a_completion_takes_texts_and_token_ids(client, prompt, tokens):
    answer = complete(client, prompt=prompt, n=2)
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    assert [choice.index for choice in answer.choices] == list(range(4 if several else 2))
    assert answer.usage.prompt_tokens == tokens
    chunks = list(complete(client, prompt=prompt, n=2, stream=True))
    for choice in answer.choices:
        parts = [other.text for chunk in chunks for other in chunk.choices if other.index == choice.index]
        assert "".join(parts) == choice.text


def test_several_prompts_get_what_each_gets_alone(client):
    together = complete(client, prompt=["one", "three"], temperature=1)
    alone = [complete(client, prompt=prompt, temperature=1).choices[0].text for prompt in ("one", "three")]
    assert [choice.text for choice in together.choices] == alone


def test_echo_repeats_the_prompt(client):
    plain, echoed = complete(client), complete(client, echo=True)
    assert echoed.choices[0].text == "one two" + plain.choices[0].text
    streamed_text = "".join(chunk.choices[0].text for chunk in complete(client, echo=True, stream=True))
    assert streamed_text == echoed.choices[0].text


SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


def test_an_answer_follows_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
    answer = chat(client, response_format=form).choices[0]
    assert json.loads(answer.message.content) in ({"a": True}, {"a": False}) and answer.finish_reason == "stop"
    texts, _ = streamed(chat(client, response_format=form, stream=True))
    assert texts == {0: (answer.message.content, "stop")}


def test_an_answer_can_be_any_object_a_choice_or_a_pattern(client):
    text = chat(client, response_format={"type": "json_object"}, max_tokens=24).choices[0].message.content
    assert text.startswith("{")
    assert chat(client, response_format={"type": "text"}).choices[0].finish_reason == "length"
    chosen = chat(client, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices[0].message.content
    assert chosen in ("yes", "no")
    number = complete(client, extra_body={"structured_outputs": {"regex": "[0-9]{4}"}}).choices[0].text
    assert len(number) == 4 and number.isdigit()


def test_a_conversation_may_have_a_system_message_parts_and_answers(client):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    answer = chat(client, messages=messages)
    assert answer.usage.prompt_tokens == 1 + (1 + len("be brief\n\nab") + 1) + (1 + 1 + 1) + (1 + 1 + 1) + 1


def test_an_answer_can_be_sent_back_as_it_came(client):
    answer = chat(client).choices[0].message
    again = chat(client, messages=[*HELLO, answer, {"role": "user", "content": "more"}])
    assert again.choices[0].finish_reason == "length"


def test_the_models_are_listed(client, server):
    (model,) = client.models.list().data
    assert (model.id, model.context, model.step, model.is_default) == (MODEL, 256, 9, True)
    assert client.models.retrieve(MODEL).id == MODEL
    for name in (None, "tiny", MODEL):
        body = {"messages": HELLO, "max_tokens": 1, **({"model": name} if name else {})}
        assert server.http.post("/v1/chat/completions", json=body).json()["model"] == MODEL


def test_text_of_any_script_arrives_whole(client):
    """Bytes of one letter come in different tokens; no half letter may be shown, in streams neither."""
    form = {"structured_outputs": {"choice": ["ü😀漢字é"]}}
    for prompt in ("x", "y"):
        assert complete(client, prompt=prompt, extra_body=form).choices[0].text == "ü😀漢字é"
        parts = [chunk.choices[0].text for chunk in complete(client, prompt=prompt, extra_body=form, stream=True)]
        assert "".join(parts) == "ü😀漢字é" and "\ufffd" not in "".join(parts)


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"temprature": 1}, "temprature", "did you mean temperature?"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "builtin_tools"),
    ({"best_of": 2}, "best_of", "use n"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 129}, "n", "less than or equal to 128"),
    ({"n": "2"}, "n", "integer"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 2.5}, "max_tokens", "integer"),
    ({"max_tokens": 10**30}, "max_tokens", "less than or equal"),
    ({"seed": 2**63}, "seed", "less than or equal"),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"stop": ["x"] * 17}, "stop", "at most 16 items"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"265": 1}}, "logit_bias", "this model knows 0 to 264"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
    ({"stop_token_ids": [265]}, "stop_token_ids", "this model knows 0 to 264"),
    ({"builtin_tools": ["python"]}, "builtin_tools", "--python"),
    ({"builtin_tools": ["hammer"]}, "builtin_tools.0", "'calculator' or 'python'"),
    ({"min_tokens": 30}, "min_tokens", "more than max_tokens 24; use a min_tokens of 24 or less"),
    ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0, not -1"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "no field"),
    ({"structured_outputs": {"regex": "(", "choice": ["a"]}}, "structured_outputs", "one of"),
    ({"structured_outputs": {"regex": "("}}, "response_format", "regex"),
    ({"model": "tinny"}, "model", "did you mean"),
]


def names_of(cases):
    """Names for pytest: the fields, and which case of them it is."""
    return [f"{'-'.join(fields)}-{number}" for number, (fields, *_) in enumerate(cases)]


@pytest.mark.parametrize(("field", "param", "words"), REFUSED, ids=names_of(REFUSED))
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_a_wrong_field_is_refused_by_name(server, route, field, param, words):
    own = {"messages": HELLO} if route.startswith("chat") else {"prompt": "x"}
    answer = server.http.post(f"/v1/{route}", json={"model": MODEL, "max_tokens": 24, **own, **field})
    error = answer.json()["error"]
    assert answer.status_code == (404 if "model" in field else 400)
    assert (error["param"], set(error)) == (param, {"message", "type", "param", "code"})
    assert words in error["message"]


CHAT_REFUSED = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "hello"}, "messages", "list"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0", "'user'"),
    ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages.0.name", "no field"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content", ""),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "expected"),
    ({"messages": HELLO * 2}, "messages", "expected"),
    ({"messages": [{"role": "user", "content": "x" * 256}]}, "messages", "context of 256"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "give one"),
    ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "what"}}}},
     "response_format", "schema"),
    ({"tool_choice": "required"}, "tool_choice", "'none' or 'auto'"),
    ({"store": True}, "store", ""),
]  # fmt: skip


@pytest.mark.parametrize(("field", "param", "words"), CHAT_REFUSED, ids=names_of(CHAT_REFUSED))
def test_a_wrong_chat_is_refused_by_name(server, field, param, words):
    answer = server.http.post("/v1/chat/completions", json={"messages": HELLO, **field})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert words in error["message"]


COMPLETION_REFUSED = [
    ({}, "prompt", "required"),
    ({"prompt": []}, "prompt", "at least 1 item"),
    ({"prompt": [[]]}, "prompt", "at least 1 item"),
    ({"prompt": [1, "x"]}, "prompt", ""),
    ({"prompt": [265]}, "prompt", "this model knows 0 to 264"),
    ({"prompt": [[3] * 256]}, "prompt", "context of 256"),
    ({"prompt": "x", "echo": True, "logprobs": 1}, "echo", "not supported"),
    ({"prompt": "x", "suffix": "y"}, "suffix", "forwards"),
    ({"prompt": "x", "messages": HELLO}, "messages", "no field"),
]


@pytest.mark.parametrize(("body", "param", "words"), COMPLETION_REFUSED, ids=names_of(COMPLETION_REFUSED))
def test_a_wrong_completion_is_refused_by_name(server, body, param, words):
    answer = server.http.post("/v1/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"].startswith(param)
    assert words in error["message"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"n": NaN}', b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "list", "null", "text", "bytes", "nan", "deep", "huge"],
)
def test_what_is_no_json_object_is_refused(server, content):
    headers = {"Content-Type": "application/json"}
    answer = server.http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400 and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_half_a_surrogate_pair_is_refused_and_comes_back_readable(server):
    body = b'{"messages": [{"role": "user", "content": "\\ud800"}], "\\ud800": 1}'
    answer = server.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_the_client_raises_its_own_errors(server):
    with server.openai() as client, pytest.raises(openai.NotFoundError):
        chat(client, model="other")
    with server.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        chat(client, temperature=9)
    assert caught.value.param == "temperature"


def test_unknown_paths_and_methods_have_errors_of_the_same_shape(server):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("PUT", "/health", 405)):
        answer = server.http.request(method, path)
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_document_names_every_field(server):
    schemas = server.http.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["ChatBody"]["properties"]) == set(ChatBody.model_fields)
    assert set(schemas["CompletionBody"]["properties"]) == set(CompletionBody.model_fields)
    assert schemas["ChatBody"]["additionalProperties"] is False


def test_metrics_have_the_names_that_dashboards_ask_for(server, client):
    chat(client)
    text = server.http.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total", "request_success_total",
        "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
        "request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket",
        "request_queue_time_seconds_bucket", "request_prefill_time_seconds_bucket",
        "request_decode_time_seconds_bucket", "iteration_tokens_total_bucket", "num_preemptions_total",
    ):  # fmt: skip
        assert f'vllm:{name}{{' in text, name
    assert f'vllm:request_success_total{{finished_reason="length",model_name="{MODEL}"}}' in text


def test_a_prompt_is_tokens_of_this_models_tokenizer(server):
    body = {"prompt": TOKENIZER.encode("one two"), "max_tokens": 1}
    assert server.http.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"] == 7
