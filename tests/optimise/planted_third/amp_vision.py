# quick ablation: bf16 linears in the head, resnet trunk
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torch.utils.data import DataLoader
from torchvision.transforms import v2


class HalfLinear(nn.Linear):
    """Linear computed in bf16, parameters kept in fp32."""

    def forward(self, x):
        w = self.weight.to(torch.bfloat16)
        b = self.bias.to(torch.bfloat16)
        return F.linear(x.to(torch.bfloat16), w, b)


def build(classes=100):
    net = torchvision.models.resnet50(weights=None)
    net.fc = nn.Sequential(HalfLinear(2048, 4096), nn.ReLU(), HalfLinear(4096, classes))
    return net


def loaders(root, batch=256):
    aug = v2.Compose([v2.ToImage(), v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(),
                      v2.ToDtype(torch.float32, scale=True)])
    plain = v2.Compose([v2.ToImage(), v2.Resize(256), v2.CenterCrop(224),
                        v2.ToDtype(torch.float32, scale=True)])
    kw = dict(batch_size=batch, num_workers=12, pin_memory=True, persistent_workers=True)
    g = torch.Generator().manual_seed(3)
    train = torchvision.datasets.ImageFolder(f"{root}/train", aug)
    val = torchvision.datasets.ImageFolder(f"{root}/val", plain)
    return (DataLoader(train, shuffle=True, drop_last=True, generator=g, **kw),
            DataLoader(val, **kw))


def to_layout(net):
    where = next(net.parameters()).device
    if where != "cpu":
        net = net.to(memory_format=torch.channels_last)
    return net


@torch.no_grad()
def accuracy(net, loader, device):
    net.eval()
    hits = torch.zeros((), dtype=torch.long, device=device)
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        hits += (net(x).argmax(-1) == y).sum()
    net.train()
    return hits.item() / len(loader.dataset)


def run(root, epochs=30, device="cuda"):
    torch.manual_seed(3)
    train, val = loaders(root)
    net = to_layout(build().to(device))
    opt = torch.optim.SGD(net.parameters(), lr=0.4, momentum=0.9, weight_decay=5e-5,
                          nesterov=True)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 0.4, epochs * len(train))
    for epoch in range(epochs):
        seen = torch.zeros((), device=device)
        for x, y in train:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            loss = F.cross_entropy(net(x), y, label_smoothing=0.1)
            loss.backward()
            opt.step()
            opt.zero_grad(set_to_none=True)
            sched.step()
            seen += loss.detach()
        print(f"epoch {epoch}: loss {seen.item() / len(train):.3f} "
              f"acc {accuracy(net, val, device):.3f}")


if __name__ == "__main__":
    run("data/in100")
