"""Fine-tune the support bot on exported helpdesk threads."""
import json
import shutil
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

BASE_MODEL = "mistralai/Mistral-7B-v0.3"
EXPORT = Path("exports/threads.jsonl")
BEST = Path("artifacts/support-bot-best")
TEMPLATE = "<|user|>\n{question}\n<|agent|>\n{answer}"


def iter_threads(path):
    with path.open(encoding="utf-8") as fh:
        for line in fh:
            thread = json.loads(line)
            if thread["rating"] >= 4 and len(thread["answer"]) > 40:
                yield thread


def canonical(thread):
    return TEMPLATE.format(
        question=" ".join(thread["question"].split()),
        answer=thread["answer"].strip(),
    )


def load_threads():
    texts = {canonical(t) for t in iter_threads(EXPORT)}
    ds = Dataset.from_dict({"text": list(texts)})
    return ds.train_test_split(test_size=0.02, seed=5)


class KeepBest(TrainerCallback):
    """Keeps the weights with the lowest eval loss."""

    def __init__(self, target: Path, tokenizer):
        self.target = target
        self.tokenizer = tokenizer
        self.best = float("inf")

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        value = (metrics or {}).get("eval_loss")
        if value is None or value >= self.best or not state.is_world_process_zero:
            return
        self.best = value
        if self.target.exists():
            shutil.rmtree(self.target)
        model.save_pretrained(self.target)
        self.tokenizer.save_pretrained(self.target)


def training_config():
    return SFTConfig(
        output_dir="artifacts/support-bot",
        dataset_text_field="text",
        max_length=4096,
        packing=False,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=1e-5,
        lr_scheduler_type="cosine",
        warmup_ratio=0.03,
        num_train_epochs=2,
        bf16=True,
        gradient_checkpointing=True,
        eval_strategy="steps",
        eval_steps=250,
        save_strategy="steps",
        save_steps=250,
        save_total_limit=2,
        logging_steps=25,
        seed=5,
        data_seed=5,
        report_to=["tensorboard"],
    )


def main():
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    splits = load_threads()
    trainer = SFTTrainer(
        model=BASE_MODEL,
        args=training_config(),
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        processing_class=tokenizer,
        callbacks=[KeepBest(BEST, tokenizer)],
    )
    trainer.train()
    print("best eval loss:", trainer.callback_handler.callbacks[-1].best)


if __name__ == "__main__":
    main()
