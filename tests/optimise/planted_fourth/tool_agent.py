"""A ReAct style agent around a local chat model."""
import re
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SYSTEM = """Answer the question. You may use these tools, one per turn:
Action: calc[<arithmetic expression>]
Action: python[<program that prints its result>]
Action: finish[<final answer>]
After each action you are given an Observation."""

ACTION = re.compile(r"Action:\s*(\w+)\[(.*)\]", re.DOTALL)


class ChatModel:
    def __init__(self, name, device="cuda"):
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16).to(device)
        self.model.eval()
        self.limit = self.model.config.max_position_embeddings

    @torch.inference_mode()
    def reply(self, messages, max_new_tokens=512):
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt"
        ).to(self.model.device)
        if ids.size(1) + max_new_tokens > self.limit:
            raise RuntimeError("the conversation no longer fits in the context")
        out = self.model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
        return self.tokenizer.decode(out[0, ids.size(1):], skip_special_tokens=True)


def run_program(source, timeout=20):
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as f:
        f.write(source)
    done = subprocess.run([sys.executable, f.name], capture_output=True, text=True, timeout=timeout)
    return done.stdout[-2000:] or done.stderr[-2000:]


TOOLS = {"python": run_program}


class Agent:
    def __init__(self, llm, max_turns=8):
        self.llm = llm
        self.max_turns = max_turns

    def observe(self, name, argument):
        tool = TOOLS.get(name)
        if tool is None:
            return f"unknown tool {name}"
        try:
            return tool(argument)
        except Exception as err:
            return f"{type(err).__name__}: {err}"

    def run(self, question):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        for _ in range(self.max_turns):
            text = self.llm.reply(messages)
            messages.append({"role": "assistant", "content": text})
            match = ACTION.search(text)
            if match is None:
                messages.append({"role": "user", "content": "Observation: no action found"})
                continue
            name, argument = match.group(1), match.group(2)
            if name == "finish":
                return argument.strip()
            if name == "calc":
                observation = eval(argument)
            else:
                observation = self.observe(name, argument)
            messages.append({"role": "user", "content": f"Observation: {observation}"})
        return None


if __name__ == "__main__":
    agent = Agent(ChatModel("Qwen/Qwen2.5-7B-Instruct"))
    print(agent.run(" ".join(sys.argv[1:])))
