# ViT-S/16 on ImageNet, multi-node.  Author: rk
import os
import contextlib
import torch, torchvision
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2 as T

EPOCHS  = 90
BS      = 256
ACCUM   = 2
CKPT    = "vit_s.pt"


def build_loader(root):
    tf = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToImage(),
                    T.ToDtype(torch.float32, scale=True)])
    ds = torchvision.datasets.ImageFolder(root, tf)
    sampler = DistributedSampler(ds, shuffle=True, seed=17, drop_last=True)
    return DataLoader(ds, BS, sampler=sampler, num_workers=12, pin_memory=True,
                      drop_last=True, persistent_workers=True)


def save_atomic(obj, dst):
    tmp = dst + ".tmp"
    with open(tmp, "wb") as fh:
        torch.save(obj, fh)
        fh.flush()
        os.fsync(fh.fileno())
    os.replace(tmp, dst)


def train(root):
    dist.init_process_group("nccl")
    gpu = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(gpu)
    torch.manual_seed(100 + dist.get_rank())

    net = torchvision.models.VisionTransformer(224, 16, 12, 6, 384, 1536).cuda()
    optim = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    loader = build_loader(root)
    per_epoch = len(loader) // ACCUM
    done = 0
    if os.path.exists(CKPT):
        sd = torch.load(CKPT, map_location="cpu", weights_only=True)
        net.load_state_dict(sd["net"]); optim.load_state_dict(sd["optim"])
        done = sd["updates"]
    model = nn.parallel.DistributedDataParallel(torch.compile(net), device_ids=[gpu])
    crit = nn.CrossEntropyLoss(label_smoothing=0.1)

    for epoch in range(done // per_epoch, EPOCHS):
        loader.sampler.set_epoch(epoch)
        for it, (img, lab) in enumerate(loader):
            img = img.cuda(non_blocking=True)
            lab = lab.cuda(non_blocking=True)
            with torch.autocast("cuda", torch.bfloat16):
                loss = crit(model(img), lab) / ACCUM
            loss.backward()
            if (it + 1) % ACCUM:
                continue
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optim.step()
            optim.zero_grad(set_to_none=True)
            done += 1
            if dist.get_rank() == 0:
                print(f"[{epoch}] {done} loss={loss.item() * ACCUM:.4f}")
                if done % 500 == 0:
                    save_atomic({"net": net.state_dict(), "optim": optim.state_dict(),
                                 "updates": done}, CKPT)
            if done % per_epoch == 0:
                break


if __name__ == "__main__":
    train(os.environ["IMAGENET"])
