"""The web pages in a real Chromium, against a real server whose model replies by a table, a token every few ms."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serve.browser import Browser, Page
from tests.serve.conftest import Running, running
from tests.serve.models import make_run
from tests.tiny_jobs import wait_for

from intone.paths import FolderLock
from intone.records import EvalRow, EventRow, Outcome, SampleRow, StepRow, log_row, write_outcome
from intone.runs import read_run, with_state
from intone.serve.models import Models

LONG = "One, two, three. " * 14
CALL = "It is <|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>42."
REFUSED = "So <|python_start|>1/0<|python_end|>what."
MARKUP = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> and [link](javascript:window.hacked=1)

- **bold** <b>not bold</b>
- `code`

```html
<script>window.hacked = 1</script>
```"""
REPLIES = {"hi": "Hello there.", "count": LONG, "6*7?": CALL, "1/0?": REFUSED, "markup": MARKUP}
TOKEN_S = 0.002
STILL = "!document.querySelector('.live')"
WORDS = "document.querySelector('#words')"


@pytest.fixture(scope="module")
def replying(served_home: Path) -> Iterator[Running]:
    make_run("talker")
    models = Models(
        "talker", arguments={"replies": REPLIES, "token_s": TOKEN_S}, loader="tests.serve.models:open_replying"
    )
    with running(models) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


class Expected(list):
    """What a test expects in the console: parts of its lines."""


@pytest.fixture
def expected() -> Expected:
    return Expected()


@pytest.fixture
def page(browser: Browser, replying: Running, expected: Expected) -> Iterator[Page]:
    """The chat page, ready; after the test nothing may stand in the console, and nothing came from elsewhere."""
    found = browser.open(f"{replying.url}/")
    found.until("document.querySelector('#model-name').textContent === 'talker/sft'", "the name of the model")
    yield found
    complaints = [line for line in found.complaints() if not any(part in line for part in expected)]
    assert complaints == []
    assert {url.split("/")[2] for url in found.requests() if not url.startswith(("data:", "blob:"))} == {
        replying.url.removeprefix("http://")
    }
    found.close()


def ask(page: Page, text: str, *, waits: bool = True) -> None:
    """Types a message and sends it; waits for the end of the answer."""
    page.run(f"{WORDS}.focus()")
    page.type(text)
    page.press("Enter")
    page.until(f"document.querySelector('#thread').innerText.includes({json.dumps(text)})", "the message")
    if waits:
        page.until(STILL, "the end of the answer")


def answers(page: Page) -> list[str]:
    return page.texts(".assistant .words")


def questions(page: Page) -> list[str]:
    return page.texts(".user .words")


def test_an_answer_streams_in_and_is_there_after_a_reload(page):
    ask(page, "count", waits=False)
    first = page.until("document.querySelector('.live .prose')?.innerText.length", "the first words")
    more = page.until(f"document.querySelector('.live .prose').innerText.length > {first + 20}", "more words")
    assert first < len(LONG) * 2 / 3 and more, "it came in pieces, not at once"
    page.until(STILL, "the end")
    assert answers(page) == [LONG.strip()]
    cost = page.text(".cost")
    assert f"{len(LONG) + 1} tokens" in cost and "tokens/s" in cost and "first after" in cost
    assert page.run(f"document.activeElement === {WORDS}"), "the next message can be typed at once"
    page.reload()
    assert (questions(page), answers(page), page.text(".cost")) == (["count"], [LONG.strip()], cost)
    assert page.texts("#conversations .open .name") == ["count"] and page.text("#title") == "count"
    ask(page, "hi")
    assert answers(page) == [LONG.strip(), "Hello there."]
    sent = page.sent("/v1/chat/completions")[-1]
    assert [row["role"] for row in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][1]["content"] == LONG


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_an_answer_stops_where_it_is(page, replying, how):
    ask(page, "count", waits=False)
    page.until("document.querySelector('.live .prose')?.innerText.length > 10", "some words")
    if how == "Escape":
        page.press("Escape")
    else:
        page.click("#send[aria-label=Stop]")
    page.until(STILL, "the stop")
    kept = answers(page)[0]
    assert 10 < len(kept) < len(LONG) - 50 and LONG.startswith(kept)
    assert "stopped" in page.text(".cost")
    ask(page, "hi")
    assert answers(page) == [kept, "Hello there."], "the server writes no further at what nobody reads"


def test_an_edited_message_is_another_version_and_the_first_is_kept(page):
    ask(page, "hi")
    ask(page, "6*7?")
    page.click(".user [aria-label=Edit]")
    page.run("document.activeElement.select()")
    page.type("ho")
    page.press("Enter")
    page.until(f"{STILL} && document.querySelector('.versions')", "the answer")
    assert (questions(page), answers(page)) == (["ho"], ["You said: ho"])
    assert page.text(".versions") == "2 / 2"
    page.click("[aria-label='Earlier version']")
    assert questions(page) == ["hi", "6*7?"]
    page.reload()
    assert questions(page) == ["hi", "6*7?"] and page.text(".versions") == "1 / 2"
    page.click("[aria-label='Later version']")
    assert questions(page) == ["ho"]


def test_trying_again_gives_another_answer_beside_the_first(page):
    ask(page, "hi")
    page.click("[aria-label='Try again']")
    page.until(f"{STILL} && document.querySelector('.versions')", "the second answer")
    assert page.text(".assistant .versions") == "2 / 2" and questions(page) == ["hi"]
    seeds = [body["seed"] for body in page.sent("/v1/chat/completions")]
    assert len(set(seeds)) == 2, "without a seed every answer has its own"


def test_tool_calls_and_their_output_are_blocks_and_go_back_with_the_next_message(page):
    ask(page, "6*7?")
    assert page.texts(".tool pre") == ["6*7", "42"] and page.texts(".prose") == ["It is", "42."]
    assert page.texts(".tool-head") == ["calculator is asked", "it answers"]
    ask(page, "1/0?")
    assert page.texts(".tool.refused pre") == ["nothing: the tool refused this"]
    page.reload()
    ask(page, "hi")
    rows = page.sent("/v1/chat/completions")[-1]["messages"]
    assert [row["role"] for row in rows] == ["user", *["assistant", "tool", "assistant", "user"] * 2]
    assert rows[2]["content"] == "42" and rows[6]["content"] is None
    assert rows[1]["tool_calls"][0]["function"] == {"name": "calculator", "arguments": '{"input": "6*7"}'}


def test_html_in_what_a_model_or_a_person_writes_stays_text(page):
    ask(page, "markup")
    page.click(".user [aria-label=Edit]")
    page.run("document.activeElement.select()")
    page.type(MARKUP)
    page.press("Enter")
    page.until(f"{STILL} && document.querySelector('.versions')", "the answer")
    page.click("[aria-label='Earlier version']")
    assert '<img src=x onerror="window.hacked=1">' in answers(page)[0]
    assert page.texts(".prose strong") == ["bold"] and page.texts(".prose li code") == ["code"]
    assert page.texts(".code pre") == ["<script>window.hacked = 1</script>"]
    found = "[window.hacked, document.querySelectorAll('#thread :is(img, script, a, iframe, b)').length]"
    assert page.run(found) == [None, 0]
    title = page.run("document.querySelector('#conversations .name').innerHTML")
    assert "<" not in title


def test_code_and_answers_are_copied(page, browser, replying):
    browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite"], origin=replying.url)
    page.call("Page.bringToFront")
    ask(page, "markup")
    page.click("[aria-label='Copy the code']")
    page.until("document.querySelector('.code [data-done]')", "the sign that it is copied")
    page.click(".assistant [aria-label=Copy]")
    page.until("document.querySelector('.assistant .tools [data-done]')", "the sign that it is copied")


def test_everything_can_be_done_with_the_keyboard(page):
    page.run("document.querySelector('.skip').focus()")
    order = [page.focused()]
    for _ in range(5):
        page.press("Tab")
        order.append(page.focused())
    assert order[:3] == ["Skip to the message box", "intone", "New chat"]
    assert {"Runs on this machine", "Colours: as the system. Change", "Settings"} <= set(order)
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid", "what has the focus is seen"
    page.run("document.querySelector('.skip').focus()")
    page.press("Enter")
    assert page.focused() == "Message"
    page.type("hi")
    page.press("Enter", shift=True)
    page.type("you")
    assert page.run(f"{WORDS}.value") == "hi\nyou" and questions(page) == []
    page.press("Enter")
    page.until(f"{STILL} && document.querySelector('.cost')", "the answer")
    assert questions(page) == ["hi\nyou"]
    assert "You said: hi" in page.run("document.querySelector('#spoken').textContent"), "screen readers hear it whole"
    page.press("ArrowUp")
    assert page.focused() == "Edit the message"
    page.press("Escape")
    assert page.focused() == "Edit" and questions(page) == ["hi\nyou"]
    page.run("document.querySelector('#open-settings').focus()")
    page.press("Enter")
    assert page.focused() == "System prompt"
    page.press("Escape")
    assert page.focused() == "Settings" and page.run("document.querySelector('#settings').hidden")


def test_settings_go_with_the_request_and_stay_in_the_browser(page):
    page.click("#open-settings")
    page.type("Be kind.")
    for name, value in {"temperature": "0.25", "top_p": "0.9", "top_k": "", "max_tokens": "7", "seed": "5"}.items():
        page.run(f"document.querySelector('#set-{name}').focus(); document.activeElement.select()")
        page.press("Backspace")
        page.type(value)
    page.run("document.querySelector('#set-max_tokens').focus(); document.activeElement.select()")
    page.type("0")
    assert "must be a whole number from 1 to 1,000,000; 7 is used" in page.text("#set-max_tokens-help")
    page.press("Escape")
    page.reload()
    ask(page, "count")
    sent = page.sent("/v1/chat/completions")[-1]
    asked = {name: sent[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "min_tokens", "seed")}
    assert asked == {"temperature": 0.25, "top_p": 0.9, "top_k": None, "max_tokens": 7, "min_tokens": 1, "seed": 5}
    assert sent["messages"][0] == {"role": "system", "content": "Be kind."}
    assert answers(page) == ["You sai"] and "cut at the most tokens" in page.text(".cost")


def test_light_and_dark_follow_the_system_until_the_switch_says_otherwise(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    page.dark(False)
    light = page.run(colour)
    page.dark(True)
    dark = page.run(colour)
    assert light != dark
    page.click(".theme")
    assert page.run(colour) == light and "light" in page.run("document.querySelector('.theme').title")
    page.reload()
    assert page.run(colour) == light
    page.click(".theme")
    page.dark(False)
    assert page.run(colour) == dark


def test_conversations_are_renamed_deleted_brought_back_and_exported(page, tmp_path, browser):
    ask(page, "hi")
    page.click("#conversations [aria-label='Rename: hi']")
    page.run("document.activeElement.select()")
    page.type("greeting")
    page.press("Enter")
    page.click("#new-chat")
    assert page.run("!document.querySelector('#empty').hidden") and questions(page) == []
    ask(page, "6*7?")
    assert page.texts("#conversations .open .name") == ["6*7?", "greeting"]
    page.click("#conversations [aria-label='Delete: 6*7?']")
    assert page.texts("#conversations .open .name") == ["greeting"] and questions(page) == []
    page.click(".note .link")
    assert questions(page) == ["6*7?"]
    page.click("#conversations li:not(.current) .open")
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#conversations [aria-label='Export as JSON: greeting']")
    path = tmp_path / "intone-greeting.json"
    wait_for(path.exists, "the file")
    saved = json.loads(path.read_text())
    assert saved["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello there."}]


def test_what_goes_wrong_is_said_and_can_be_mended(page, expected):
    expected += ["429", "401", "400", "ERR_INTERNET_DISCONNECTED"]
    problem = {"error": {"message": "the queue is full", "type": "x", "param": None, "code": None}}
    path = "/v1/chat/completions"
    page.answer(path, when=lambda: ask(page, "hi", waits=False), status=429, body=problem, Retry_After="1")
    page.until("document.querySelector('.waiting')?.innerText.includes('busy. Trying again in')", "the countdown")
    page.until(f"{STILL} && document.querySelector('.cost')", "the answer after it")
    assert answers(page) == ["Hello there."]
    problem["error"]["message"] = "temperature is 9, it must be at most 2"
    page.answer(path, when=lambda: ask(page, "6*7?", waits=False), status=400, body=problem)
    page.until("document.querySelector('.error')", "the error")
    assert page.text(".error p") == "temperature is 9, it must be at most 2"
    page.click(".error button")
    page.until(f"{STILL} && !document.querySelector('.error')", "the answer")
    assert page.texts(".tool pre") == ["6*7", "42"]
    page.answer(path, when=lambda: ask(page, "key", waits=False), status=401, body=problem)
    page.until("document.querySelector('.error')", "the error")
    page.click(".error button")
    assert page.focused() == "Key"
    page.type("s3cret")
    page.press("Enter")
    page.until(f"{STILL} && !document.querySelector('.error')", "the answer")
    page.offline(True)
    ask(page, "hi", waits=False)
    page.until("document.querySelector('.error')", "the error")
    assert "The server does not answer. Is intone serve still running?" in page.text(".error p")
    page.until("!document.querySelector('#banner').hidden", "the banner")
    page.offline(False)
    page.click(".error button")
    page.until(f"{STILL} && !document.querySelector('.error')", "the answer")
    assert answers(page)[-1] == "Hello there."


def test_while_the_model_loads_the_page_says_so_calmly_and_goes_on_by_itself(browser, replying, monkeypatch):
    monkeypatch.setattr(replying.server.models, "_default", None)  # as before its engine is ready
    page = browser.open(f"{replying.url}/")
    page.until("!document.querySelector('#loading').hidden", "the state")
    assert page.text("#loading") == "The model is loading ..." and page.run("document.querySelector('#banner').hidden")
    colours = "(e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; })"
    page.run("document.body.append(Object.assign(document.createElement('p'), {id: 'red', className: 'banner'}))")
    calm, red = (page.run(f"{colours}(document.querySelector('{name}'))") for name in ("#loading", "#red"))
    assert calm[0] != red[0] and calm[1] != red[1]
    ask(page, "hi", waits=False)
    page.until("document.querySelector('.waiting')?.innerText.includes('The model is loading')", "that it waits")
    assert not page.run("document.querySelector('.error')")
    monkeypatch.undo()
    page.until(f"{STILL} && document.querySelector('.cost') && document.querySelector('#loading').hidden", "an answer")
    assert answers(page) == ["Hello there."] and page.text("#model-name") == "talker/sft"
    assert all("503" in line for line in page.complaints())
    page.close()


def test_on_a_phone_nothing_is_cut_and_the_list_opens_and_closes(page):
    page.size(360, 740, is_phone=True)
    for text in ("markup", "6*7?"):
        page.run(f"{WORDS}.focus()")
        page.type(text)
        page.click("#send")
        page.until(f"document.querySelector('#thread').innerText.includes({json.dumps(text)}) && {STILL}", "the answer")
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run("document.querySelector('#scroll').scrollWidth <= document.querySelector('#scroll').clientWidth")
    page.click("#open-sidebar")
    page.until("document.querySelector('#sidebar').getBoundingClientRect().x === 0", "the list")
    page.press("Escape")
    page.until("document.querySelector('#sidebar').getBoundingClientRect().x < -200", "the list gone")
    assert page.focused() == "Conversations" and page.run("document.querySelector('#sidebar').inert")


# --- runs ------------------------------------------------------------------------------------------------------------


def step(number: int, loss: float | None) -> StepRow:
    return StepRow(number, 1000 * number, loss, 1.0, 0.5, 0.01, 2000.0, 2**30 + number)


@pytest.mark.long
def test_a_run_is_followed_while_another_process_trains_and_then_talked_to(browser, replying):
    folder = make_run("growing")
    (folder / "outcome.json").unlink()
    run = with_state(read_run(folder.parent), "unfinished")
    log = folder / "log.jsonl"
    log_row(log, step(1, 4.0))
    page = browser.open(f"{replying.url}/runs#growing")
    with FolderLock(run.folder / "lock"):
        page.until("document.querySelector('.tiles strong')?.innerText === '4.000'", "the loss")
        assert page.text(".title .state") == "training" and page.text(".stage-words span") == "1 of 9 steps"
        for number in range(2, 5):
            log_row(log, step(number, 3.0))
        log_row(log, EvalRow(4, 1.0, {"bpb": 1.5}))
        log_row(log, EventRow(4, "restart", "killed; going on from step 4"))
        log_row(folder / "samples.jsonl", SampleRow(4, "Hello", "wo<b>rld"))
        page.until("document.querySelector('.stage-words span').innerText === '4 of 9 steps'", "the new steps")
        page.until("document.querySelector('.answered')?.innerText === 'wo<b>rld'", "what the model says")
        figures = dict(zip(page.texts(".tiles dt"), page.texts(".tiles strong"), strict=True))
        assert figures == {
            "loss": "3.250", "tokens per second": "2,000", "MFU": "unknown", "memory": "1 GiB", "time left": "2.5 s"
        }  # fmt: skip
        assert "killed; going on from step 4" in page.text("#run")
        assert page.run("document.querySelectorAll('.plot .line.bold').length") >= 3
        asked = [url for url in page.requests() if "/log?" in url]
        log.write_text("".join(log.read_text().splitlines(True)[:2]))
        temporary = log.with_suffix(".new")
        temporary.write_text(log.read_text())
        temporary.replace(log)  # as a run that goes on from its save cuts its log
        page.until("document.querySelector('.stage-words span').innerText === '2 of 9 steps'", "the cut log")
        assert "offset=0" in asked[0] and all("offset=0" not in url for url in asked[1:])
    write_outcome(folder, Outcome("disk_full", 2, "no space left", "free some space"))
    with_state(run, "disk_full")
    page.until("document.querySelector('.outcome')", "how it ended")
    assert "sft: disk full. no space left" in page.text(".outcome") and "free some space" in page.text(".outcome")
    assert page.text(".title .state") == "disk full"
    page.click(".title .primary")
    page.until("document.querySelector('#model')?.value === 'growing/sft'", "the chat with it")
    ask(page, "hi")
    assert answers(page) == ["Hello there."]
    assert page.sent("/v1/chat/completions")[-1]["model"] == "growing/sft"
    assert page.complaints() == []
    page.close()


def test_the_page_of_runs_fits_a_phone_and_lists_what_is_there(browser, replying):
    page = browser.open(f"{replying.url}/runs", width=360, height=740)
    page.until("document.querySelector('.title h1')", "a run")
    assert "talker" in page.texts(".run-name")
    assert page.run("document.documentElement.scrollWidth") == 360
    assert "settled" in page.text("#run") or "rows at a time" in page.text("#run")
    assert page.complaints() == []
    page.close()
