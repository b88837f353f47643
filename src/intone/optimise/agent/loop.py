"""One session with a language model: it plans, changes a worktree step by step, and says when it is done.

What comes out is a proposal: a plan in words and files that differ. Whether it is any good is measured elsewhere, by
code that the model can neither reach nor change.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intone.log import human_duration, say
from intone.optimise.agent.client import ChatClient, Message
from intone.optimise.agent.tools import Refused, Tools
from intone.paths import append_line, read_lines

End = Literal["done", "steps", "tokens", "minutes", "lost", "stopped"]
MAX_BAD_REPLIES = 4  # in a row; guess: a model that cannot follow the form after four reminders never will
KEPT_CHARACTERS = 48_000  # of the conversation that is sent: 12,000 tokens, which small models' contexts hold
PLAN_PARTS = ("decided", "tasks", "files", "risks", "tests", "gates", "effect")

RULES = """\
You improve a code base. The task: {task}

You act through tools, one in each message. A message may begin with a few words of thought; then it holds exactly one
JSON object, in a block fenced by ```json and ```. The tools:

{{"tool": "list", "pattern": "*.py"}}
{{"tool": "read", "path": "a.py", "first": 1, "last": 120}}
{{"tool": "search", "pattern": "regular expression", "files": "*.py"}}
{{"tool": "plan", "decided": "...", "tasks": "...", "files": "...", "risks": "...", "tests": "...", "gates": "...",
  "effect": "what should change, by how much, and why"}}
{{"tool": "edit", "path": "a.py", "old": "lines as they stand", "new": "lines as they should be"}}
{{"tool": "create", "path": "b.py", "text": "..."}}
{{"tool": "run_tests"}}
{{"tool": "measure"}}
{{"tool": "done", "summary": "one line for the commit", "why": "a few lines"}}

Read before you write. A plan comes before the first edit. Add or extend tests for what you change. Files that judge
your change are sealed: you can read them, not change them. After "done" your change is tested and measured by others;
numbers that you claim count for nothing. {left}"""


@dataclass(frozen=True)
class Budget:
    """Where a session ends by itself."""

    steps: int = 40
    tokens: int = 400_000
    minutes: float = 30.0


@dataclass(frozen=True)
class Proposal:
    """What a session left. end: why it ended; only "done" is a proposal that the model stands by."""

    end: End
    plan: dict[str, str]
    summary: str
    why: str
    edited: tuple[str, ...]
    steps: int
    tokens: int
    seconds: float

    @property
    def text(self) -> str:
        """The plan as Markdown."""
        parts = [f"## {name.capitalize()}\n\n{self.plan[name]}" for name in PLAN_PARTS if self.plan.get(name)]
        return "\n\n".join(parts) or "The model wrote no plan."


@dataclass
class Session:
    """A conversation that is kept on disk line by line, and goes on from there when it is opened again."""

    client: ChatClient
    tools: Tools
    task: str
    transcript: Path
    budget: Budget = Budget()
    clock: Callable[[], float] = time.monotonic
    tokens: int = 0
    steps: int = 0
    spent_s: float = 0.0

    def run(self) -> Proposal:
        """Talks until the model is done or the budget is. Ctrl-C ends it as "stopped"; all so far is on disk.

        Raises UserError where the server cannot be used.
        """
        messages, plan = self._restored()
        begin_s, before_s, bad = self.clock(), self.spent_s, 0
        end: End = "stopped"
        final: dict[str, Any] = {}
        try:
            while True:
                self.spent_s = before_s + self.clock() - begin_s
                over = self._over()
                if over is not None:
                    end = over
                    break
                reply = self.client.ask(self._shortened(messages))
                self.steps += 1
                self.tokens += reply.tokens if reply.tokens is not None else estimated(messages, reply.text)
                action = parsed(reply.text)
                if action is not None and action.get("tool") == "done" and plan:
                    self._keep(messages, "assistant", reply.text)
                    end, final = "done", action
                    break
                bad = 0 if action is not None else bad + 1
                if bad >= MAX_BAD_REPLIES:
                    end = "lost"
                    break
                answer = self._answer(action, plan, reply.is_cut)
                self._keep(messages, "assistant", reply.text, plan=plan)
                self._keep(messages, "user", answer)
                say(f"step {self.steps}: {shown(action)}; {self.tokens:,} tokens, {human_duration(self.spent_s)}")
        except KeyboardInterrupt:
            end = "stopped"
        summary, why = (str(final.get(name) or "") for name in ("summary", "why"))
        edited = tuple(sorted(self.tools.edited))
        return Proposal(end, plan, summary, why, edited, self.steps, self.tokens, self.spent_s)

    def _answer(self, action: dict[str, Any] | None, plan: dict[str, str], is_cut: bool) -> str:
        """What the model hears; fills the plan where it wrote one."""
        if action is None:
            reason = "your message was cut off: write less at a time" if is_cut else "there was no JSON object in it"
            return f"{reason}. Send exactly one JSON object with a tool, in a block fenced by ```json and ```."
        try:
            if action.get("tool") == "plan":
                missing = [name for name in PLAN_PARTS if not str(action.get(name) or "").strip()]
                if missing:
                    raise Refused(f"the plan lacks {', '.join(missing)}")
                plan.update({name: str(action[name]) for name in PLAN_PARTS})
                return "the plan is kept; now make the change"
            if action.get("tool") in ("edit", "create", "done") and not plan:
                raise Refused("write a plan first")
            return self.tools.call(action)
        except Refused as refusal:
            return f"refused: {refusal}"

    def _over(self) -> End | None:
        if self.steps >= self.budget.steps:
            return "steps"
        if self.tokens >= self.budget.tokens:
            return "tokens"
        return "minutes" if self.spent_s >= 60 * self.budget.minutes else None

    # --- the conversation -----------------------------------------------------------------------------------------

    def _restored(self) -> tuple[list[Message], dict[str, str]]:
        """The conversation so far, from disk, or its beginning."""
        rows = read_lines(self.transcript)
        messages = [{"role": str(row["role"]), "content": str(row["content"])} for row in rows]
        plan: dict[str, str] = {}
        for row in rows:
            plan.update(row.get("plan") or {})
            self.tokens, self.steps, self.spent_s = row["tokens"], row["steps"], row["seconds"]
            self.tools.edited.update(row.get("edited") or [])
        if not messages:
            left = f"You have {self.budget.steps} messages."
            self._keep(messages, "user", RULES.format(task=self.task, left=left))
        elif messages[-1]["role"] == "assistant":
            self._keep(messages, "user", "your last message was interrupted; go on")
        return messages, plan

    def _keep(self, messages: list[Message], role: str, content: str, plan: dict[str, str] | None = None) -> None:
        messages.append({"role": role, "content": content})
        self.transcript.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.transcript, {
            "role": role, "content": content, "tokens": self.tokens, "steps": self.steps, "seconds": self.spent_s,
            "edited": sorted(self.tools.edited), **({"plan": plan} if plan else {}),
        })  # fmt: skip

    def _shortened(self, messages: list[Message]) -> list[Message]:
        """The first message and the newest ones that fit; what tools said long ago is left out first."""
        kept: list[Message] = []
        room = KEPT_CHARACTERS - len(messages[0]["content"])
        for message in reversed(messages[1:]):
            content = message["content"]
            if room < len(content):
                content = f"({len(content):,} characters, left out to save room: ask again where you need them)"
            room -= len(content)
            kept.append({"role": message["role"], "content": content})
            if room <= 0:
                break
        if len(kept) < len(messages) - 1 and kept[-1]["role"] == "user":
            kept.pop()  # roles take turns, and the first message is the user's
        return [messages[0], *reversed(kept)]


def parsed(text: str) -> dict[str, Any] | None:
    """The JSON object of a reply: fenced, or the first one that stands in it and has a tool; None: there is none."""
    fenced = re.findall(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    decoder = json.JSONDecoder(strict=False)  # models write line breaks into strings
    for piece in [*fenced, text]:
        for match in re.finditer(r"\{", piece):
            try:
                value, _ = decoder.raw_decode(piece, match.start())
            except ValueError:
                continue
            if isinstance(value, dict) and isinstance(value.get("tool"), str):
                return value
    return None


def estimated(messages: list[Message], reply: str) -> int:
    """Tokens where the server did not count: a token is about four characters of English or code (rule of thumb)."""
    return (sum(len(message["content"]) for message in messages) + len(reply)) // 4


def shown(action: dict[str, Any] | None) -> str:
    """An action in a few words, for the line of progress."""
    if action is None:
        return "a reply without an action"
    rest = action.get("path") or action.get("pattern") or ""
    return f"{action['tool']} {rest}".strip()[:80]
