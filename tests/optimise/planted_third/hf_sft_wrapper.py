"""Thin wrapper over transformers.Trainer for instruction tuning."""
from dataclasses import dataclass, field

import datasets
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
)


@dataclass
class TunerSettings:
    base: str = "Qwen/Qwen2.5-0.5B"
    data: str = "data/instructions.parquet"
    output: str = "runs/instruct"
    context: int = 2048
    epochs: float = 2.0
    lr: float = 1e-5
    columns: tuple = ("instruction", "response")
    trainer_extra: dict = field(default_factory=dict)

    def encode_options(self):
        return {"padding": "max_length", "max_length": self.context, "truncation": False}


class InstructionTuner:
    def __init__(self, settings: TunerSettings):
        self.s = settings
        self.tok = AutoTokenizer.from_pretrained(settings.base)
        if self.tok.pad_token is None:
            self.tok.pad_token = self.tok.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(
            settings.base, torch_dtype=torch.float32, attn_implementation="sdpa"
        )

    def _encode(self, row):
        ask, answer = (row[c] for c in self.s.columns)
        prompt = f"### Instruction\n{ask}\n### Response\n"
        enc = self.tok(prompt + answer + self.tok.eos_token, **self.s.encode_options())
        head = len(self.tok(prompt).input_ids)
        labels = [t if m and i >= head else -100
                  for i, (t, m) in enumerate(zip(enc["input_ids"], enc["attention_mask"]))]
        return {**enc, "labels": labels}

    def dataset(self):
        ds = datasets.load_dataset("parquet", data_files=self.s.data, split="train")
        before = len(ds)
        ds = ds.map(self._encode, remove_columns=ds.column_names, num_proc=8)
        ds = ds.filter(lambda r: len(r["input_ids"]) <= self.s.context)
        print(f"{before - len(ds)} of {before} rows longer than {self.s.context}, left out")
        return ds

    def arguments(self):
        return TrainingArguments(
            output_dir=self.s.output,
            num_train_epochs=self.s.epochs,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=64,
            learning_rate=self.s.lr,
            lr_scheduler_type="cosine",
            warmup_ratio=0.03,
            bf16=True,
            torch_compile=True,
            logging_steps=20,
            save_strategy="steps",
            save_steps=500,
            seed=17,
            report_to="none",
            **self.s.trainer_extra,
        )

    def run(self, resume=False):
        trainer = Trainer(
            model=self.model,
            args=self.arguments(),
            train_dataset=self.dataset(),
            data_collator=default_data_collator,
        )
        trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    InstructionTuner(TunerSettings()).run()
