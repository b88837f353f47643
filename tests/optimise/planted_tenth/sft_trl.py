"""Supervised tuning of a 360M model on support chats, one A100-80G."""
import os
from argparse import ArgumentParser

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

BASE = "HuggingFaceTB/SmolLM2-360M"

SCHEDULE = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "num_train_epochs": 3,
}

BATCHING = dict(per_device_train_batch_size=1, gradient_accumulation_steps=64)

PROBES = (
    "My parcel was marked as delivered but I never got it.",
    "How do I change the card on my account?",
    "I would like a refund for last month.",
)


class ShowAnswers(TrainerCallback):
    """Writes what the model says to a few fixed questions after each evaluation."""

    def __init__(self, tokenizer, path):
        self.tokenizer = tokenizer
        self.path = path

    @torch.no_grad()
    def on_evaluate(self, args, state, control, model=None, **kwargs):
        was_training = model.training
        model.eval()
        with open(self.path, "a") as fh:
            for question in PROBES:
                ids = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": question}],
                    add_generation_prompt=True,
                    return_tensors="pt",
                ).to(model.device)
                out = model.generate(ids, max_new_tokens=400, do_sample=False)
                text = self.tokenizer.decode(out[0, ids.size(1):], skip_special_tokens=True)
                fh.write(f"[{state.global_step}] {question}\n{text}\n\n")
        model.train(was_training)


def get_model():
    model = AutoModelForCausalLM.from_pretrained(BASE, attn_implementation="sdpa")
    for conf in (model.config, model.generation_config):
        conf.use_cache = False
    return model


def get_config(out, seed):
    config = SFTConfig(
        output_dir=out,
        bf16=True,
        seed=seed,
        data_seed=seed,
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=250,
        save_steps=250,
        save_total_limit=3,
        max_length=2048,
        assistant_only_loss=True,
        **BATCHING,
        **SCHEDULE,
    )
    config.packing = False
    return config


def main():
    ap = ArgumentParser()
    ap.add_argument("--data", default="data/support_chats.jsonl")
    ap.add_argument("--out", default="runs/support")
    ap.add_argument("--seed", type=int, default=17)
    ap.add_argument("--resume", action="store_true")
    opts = ap.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    data = load_dataset("json", data_files=opts.data, split="train")
    data = data.train_test_split(test_size=0.02, seed=opts.seed)

    trainer = SFTTrainer(
        model=get_model(),
        args=get_config(opts.out, opts.seed),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        callbacks=[ShowAnswers(tokenizer, os.path.join(opts.out, "answers.txt"))],
    )
    trainer.train(resume_from_checkpoint=opts.resume or None)
    trainer.save_model(os.path.join(opts.out, "final"))


if __name__ == "__main__":
    main()
