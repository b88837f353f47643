import logging

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForImageClassification, get_scheduler

logger = logging.getLogger(__name__)

MODEL_NAME = "google/vit-base-patch16-224-in21k"
HPARAMS = {"lr": 5e-5, "epochs": 20, "batch": 128, "accum": 2, "seed": 2024, "val_share": 0.05}


def shuffled(ds):
    order = np.random.default_rng().permutation(len(ds))
    return ds.select(order)


def split(ds, share):
    cut = int(len(ds) * (1.0 - share))
    return ds.select(range(cut)), ds.select(range(cut, len(ds)))


def make_transform(processor):
    def transform(rows):
        images = [im.convert("RGB") for im in rows["image"]]
        out = processor(images, return_tensors="pt")
        out["labels"] = torch.tensor(rows["label"])
        return out

    return transform


def collate(rows):
    return {
        "pixel_values": torch.stack([r["pixel_values"] for r in rows]),
        "labels": torch.stack([r["labels"] for r in rows]),
    }


@torch.inference_mode()
def accuracy(accelerator, model, loader):
    hits = torch.zeros((), device=accelerator.device)
    seen = 0
    model.eval()
    for batch in loader:
        guess = model(pixel_values=batch["pixel_values"]).logits.argmax(-1)
        guess, truth = accelerator.gather_for_metrics((guess, batch["labels"]))
        hits += (guess == truth).sum()
        seen += truth.numel()
    model.train()
    return (hits / seen).item()


def main(hp=HPARAMS):
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=hp["accum"])
    set_seed(hp["seed"], device_specific=True)

    ds = shuffled(load_dataset("food101", split="train"))
    names = ds.features["label"].names
    processor = AutoImageProcessor.from_pretrained(MODEL_NAME)
    train, val = (part.with_transform(make_transform(processor)) for part in split(ds, hp["val_share"]))
    model = AutoModelForImageClassification.from_pretrained(MODEL_NAME, num_labels=len(names))

    common = dict(batch_size=hp["batch"], collate_fn=collate, num_workers=8, pin_memory=True, drop_last=True)
    train_loader, val_loader = DataLoader(train, **common), DataLoader(val, **common)
    optimizer = torch.optim.AdamW(model.parameters(), lr=hp["lr"])
    model, optimizer, train_loader, val_loader = accelerator.prepare(
        model, optimizer, train_loader, val_loader
    )
    total = hp["epochs"] * len(train_loader) // hp["accum"]
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=200, num_training_steps=total)

    for epoch in range(hp["epochs"]):
        model.train()
        torch.compiler.reset()
        fast = torch.compile(model, mode="max-autotune-no-cudagraphs")
        for batch in train_loader:
            with accelerator.accumulate(model):
                out = fast(**batch)
                loss = out.loss / accelerator.gradient_accumulation_steps
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                if accelerator.sync_gradients:
                    scheduler.step()
                optimizer.zero_grad()
        score = accuracy(accelerator, model, val_loader)
        if accelerator.is_main_process:
            logger.info("epoch %d accuracy %.4f", epoch, score)

    accelerator.unwrap_model(model).save_pretrained("out/food-vit", is_main_process=accelerator.is_main_process)
    accelerator.end_training()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
