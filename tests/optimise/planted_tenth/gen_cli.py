#!/usr/bin/env python
"""opsbot: ask a local model for a shell recipe and, with --go, carry it out."""
import dataclasses
import re
import subprocess
import sys

import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

console = Console()
cli = typer.Typer(add_completion=False)

SYSTEM = (
    "You are an operations assistant. Answer with one fenced bash block that "
    "does what the user wants and nothing else."
)
FENCE = re.compile(r"```(?:bash|sh)?\n(.*?)```", re.S)


@dataclasses.dataclass
class DecodeOptions:
    max_new_tokens: int = 1024
    do_sample: bool = False
    repetition_penalty: float = 1.05
    num_beams: int = 1
    use_cache: bool = False


class Assistant:
    def __init__(self, name: str, options: DecodeOptions):
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(name, device_map="auto").eval()
        if self.model.device == "cuda":
            self.model = self.model.to(torch.bfloat16)
        self.config = GenerationConfig(
            **dataclasses.asdict(options),
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.eos_token_id,
        )

    def render(self, wish: str) -> torch.Tensor:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": wish},
        ]
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt"
        )
        return ids.to(self.model.device)

    @torch.inference_mode()
    def answer(self, wish: str) -> str:
        ids = self.render(wish)
        out = self.model.generate(ids, generation_config=self.config)
        return self.tokenizer.decode(out[0, ids.size(1):], skip_special_tokens=True)


def recipe(reply: str) -> str:
    found = FENCE.search(reply)
    if found is None:
        raise typer.BadParameter("the model gave no bash block")
    return found.group(1).strip()


def carry_out(script: str, cwd: str) -> int:
    done = subprocess.run(["bash", "-c", script], cwd=cwd, timeout=300)
    return done.returncode


@cli.command()
def main(
    wish: str = typer.Argument(..., help="what should be done"),
    model: str = typer.Option("Qwen/Qwen2.5-7B-Instruct"),
    tokens: int = typer.Option(1024, min=16, max=4096),
    cwd: str = typer.Option("."),
    go: bool = typer.Option(False, help="carry the recipe out"),
):
    options = DecodeOptions(max_new_tokens=tokens)
    assistant = Assistant(model, options)
    script = recipe(assistant.answer(wish))
    console.print(script, style="cyan")
    if not go:
        raise typer.Exit()
    code = carry_out(script, cwd)
    console.print(f"exit status {code}", style="green" if code == 0 else "red")
    sys.exit(code)


if __name__ == "__main__":
    cli()
