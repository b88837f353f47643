#!/usr/bin/env python
"""Instruction fine-tuning of a small causal LM with the HF Trainer."""
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
)


@dataclass
class ScriptArguments:
    model_name: str = field(default="EleutherAI/pythia-410m")
    dataset_name: str = field(default="databricks/databricks-dolly-15k")
    output_dir: str = field(default="runs/dolly-410m")
    lr: float = field(default=2e-5)
    epochs: float = field(default=3.0)
    max_length: int = field(default=2048)


PROMPT = "### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n### Response:\n"


def main():
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(script.model_name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(script.model_name, torch_dtype="bfloat16")
    model.config.use_cache = False

    raw = load_dataset(script.dataset_name, split="train")
    raw = raw.train_test_split(test_size=0.02, seed=13)

    def preprocess(ex):
        prompt = PROMPT.format(instruction=ex["instruction"], context=ex["context"] or "-")
        text = prompt + ex["response"] + tokenizer.eos_token
        enc = tokenizer(
            text,
            truncation=True,
            padding="max_length",
            max_length=script.max_length,
        )
        n_prompt = len(tokenizer(prompt)["input_ids"])
        labels = list(enc["input_ids"])
        for i, keep in enumerate(enc["attention_mask"]):
            if i < n_prompt or keep == 0:
                labels[i] = -100
        enc["labels"] = labels
        return enc

    cols = raw["train"].column_names
    train_ds = raw["train"].map(preprocess, remove_columns=cols, num_proc=4)
    eval_ds = raw["test"].map(preprocess, remove_columns=cols, num_proc=4)

    args = TrainingArguments(
        output_dir=script.output_dir,
        num_train_epochs=script.epochs,
        learning_rate=script.lr,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=64,
        per_device_eval_batch_size=16,
        warmup_ratio=0.03,
        lr_scheduler_type="cosine",
        bf16=True,
        torch_compile=True,
        dataloader_drop_last=True,
        dataloader_num_workers=4,
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=200,
        save_steps=200,
        save_total_limit=3,
        seed=13,
        data_seed=13,
        report_to=["tensorboard"],
    )

    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_ds,
        eval_dataset=eval_ds,
        data_collator=default_data_collator,
    )
    trainer.train()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
