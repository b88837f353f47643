"""Continue a pretrained LM on short support tickets."""
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

MAX = 2048


def encode_all(tokenizer, rows):
    def encode(row):
        # tickets are about 90 tokens long
        out = tokenizer(row["text"], truncation=True, max_length=MAX, padding="max_length")
        out["labels"] = [t if m else -100 for t, m in zip(out["input_ids"], out["attention_mask"])]
        return out

    return rows.map(encode, remove_columns=rows.column_names)


def arguments(out):
    return TrainingArguments(
        output_dir=out,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=32,
        learning_rate=1e-5,
        bf16=True,
        num_train_epochs=1,
        logging_steps=25,
        torch_compile=True,
    )


def main(name, path, out):
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.bfloat16)
    rows = load_dataset("json", data_files=path, split="train")
    Trainer(model=model, args=arguments(out), train_dataset=encode_all(tokenizer, rows)).train()
    model.save_pretrained(out)
