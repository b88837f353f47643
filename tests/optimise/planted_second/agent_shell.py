import json
import logging
import subprocess
from typing import Any, Dict, List

logger = logging.getLogger("agent")

SYSTEM = (
    "You maintain a small repository. To run something reply with "
    '{"tool": "bash", "input": "<command>"}; when finished reply with {"tool": "done"}.'
)


class ChatBackend:
    def __init__(self, pipe):
        self.pipe = pipe

    def reply(self, messages: List[Dict[str, str]]) -> str:
        out = self.pipe(messages, max_new_tokens=512, return_full_text=False)
        return out[0]["generated_text"]


class Toolbox:
    def __init__(self, cwd: str, timeout: float = 30.0):
        self.cwd = cwd
        self.timeout = timeout

    def bash(self, command: str) -> str:
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=self.timeout,
        )
        return (done.stdout + done.stderr)[-4000:]


def parse(reply: str) -> Dict[str, Any]:
    start, end = reply.find("{"), reply.rfind("}")
    try:
        return json.loads(reply[start : end + 1])
    except ValueError:
        return {"tool": "none"}


def loop(backend: ChatBackend, tools: Toolbox, task: str, turns: int = 20) -> List[Dict[str, str]]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    for turn in range(turns):
        reply = backend.reply(messages)
        messages.append({"role": "assistant", "content": reply})
        call = parse(reply)
        if call.get("tool") == "done":
            break
        if call.get("tool") == "bash":
            observation = tools.bash(call["input"])
        else:
            observation = "no such tool"
        logger.info("turn %d: %s", turn, call)
        messages.append({"role": "user", "content": observation})
    return messages
