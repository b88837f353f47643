import itertools
import os

import click
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup


def build_blocks(name, tokenizer, block):
    ds = load_dataset(name, split="train")

    def tokenize(rows):
        return {"ids": [x + [tokenizer.eos_token_id] for x in tokenizer(rows["text"])["input_ids"]]}

    def group(rows):
        flat = list(itertools.chain.from_iterable(rows["ids"]))
        n = len(flat) // block * block
        return {"input_ids": [flat[i : i + block] for i in range(0, n, block)]}

    ds = ds.map(tokenize, batched=True, remove_columns=ds.column_names)
    ds = ds.map(group, batched=True, remove_columns=["ids"])
    return ds.with_format("torch")


def wrap(model, rank):
    cfg = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, cfg)
    model.print_trainable_parameters()
    return model


@click.command()
@click.option("--base", default="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T")
@click.option("--dataset", default="ccdv/pubmed-summarization")
@click.option("--block", default=1024)
@click.option("--batch-size", default=16)
@click.option("--accum-steps", default=4)
@click.option("--epochs", default=2)
@click.option("--rank", default=16)
@click.option("--lr", default=2e-4)
@click.option("--seed", default=5)
@click.option("--out", default="adapter")
def main(base, dataset, block, batch_size, accum_steps, epochs, rank, lr, seed, out):
    os.makedirs(out, exist_ok=False)
    torch.manual_seed(seed)
    tok = AutoTokenizer.from_pretrained(base)
    net = wrap(AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.bfloat16).cuda(), rank)
    model = torch.compile(net)

    loader = DataLoader(
        build_blocks(dataset, tok, block),
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        drop_last=True,
        pin_memory=True,
        num_workers=2,
    )
    trainable = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr)
    total = epochs * len(loader) // accum_steps
    scheduler = get_linear_schedule_with_warmup(optimizer, total // 30, total)

    net.train()
    for epoch in range(epochs):
        pbar = tqdm(loader, desc=f"epoch {epoch}")
        for batch in pbar:
            ids = batch["input_ids"].cuda(non_blocking=True)
            loss = model(input_ids=ids, labels=ids).loss / accum_steps
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            pbar.set_postfix(loss=loss.item() * accum_steps)

    net.save_pretrained(out)
    tok.save_pretrained(out)


if __name__ == "__main__":
    main()
