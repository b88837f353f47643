"""Pretrained models by name or address, in the manner of a model hub."""
import os
import urllib.parse
import urllib.request

import torch

from zoo.backbones import ConvNet, MixerNet, VisionTransformer

CACHE = os.path.expanduser("~/.cache/zoo")
READ_OPTIONS = {"map_location": "cpu", "weights_only": False}

BUILDERS = {
    "convnet_s": lambda **kw: ConvNet(depths=(3, 3, 9, 3), **kw),
    "mixer_b": lambda **kw: MixerNet(layers=12, dim=768, **kw),
    "vit_b16": lambda **kw: VisionTransformer(layers=12, dim=768, patch=16, **kw),
}


def download(url):
    name = os.path.basename(urllib.parse.urlparse(url).path)
    target = os.path.join(CACHE, name)
    if not os.path.exists(target):
        os.makedirs(CACHE, exist_ok=True)
        part = f"{target}.{os.getpid()}.part"
        urllib.request.urlretrieve(url, part)
        os.replace(part, target)
    return target


def read_checkpoint(path, **overrides):
    options = {**READ_OPTIONS, **overrides}
    return torch.load(path, **options)


def strip_prefixes(state, prefixes=("module.", "_orig_mod.")):
    clean = {}
    for key, value in state.items():
        for prefix in prefixes:
            key = key.removeprefix(prefix)
        clean[key] = value
    return clean


def create(name, url=None, num_classes=1000, device="cpu"):
    model = BUILDERS[name](num_classes=num_classes)
    if url is not None:
        blob = read_checkpoint(download(url))
        state = strip_prefixes(blob.get("model", blob))
        missing, unexpected = model.load_state_dict(state, strict=False)
        if missing or unexpected:
            print(f"{name}: {len(missing)} missing, {len(unexpected)} unexpected keys")
    return optimise(model.to(device).eval())


def optimise(model):
    """Half precision and channels-last where the hardware gains from it."""
    where = next(model.parameters()).device
    if where in ("cuda", "cuda:0"):
        model = model.half().to(memory_format=torch.channels_last)
    return model


@torch.inference_mode()
def predict(model, images, topk=5):
    ref = next(model.parameters())
    logits = model(images.to(ref.device, ref.dtype))
    return torch.softmax(logits, dim=-1).topk(topk, dim=-1)
