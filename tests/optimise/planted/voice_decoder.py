"""Audio-token decoder that keeps its running state on the object."""
import torch
from torch import nn


class VoiceDecoder(nn.Module):
    def __init__(self, backbone, codebook, takes=4, heat=0.7):
        super().__init__()
        self.backbone = backbone
        self.codebook = codebook
        self.takes = takes
        self.heat = heat
        self.memory = None
        self.current = None

    def _dice(self, scores):
        p = torch.softmax(scores / self.heat, -1)
        return torch.multinomial(p, 1)

    def begin(self, conditioning):
        scores, memory = self.backbone(conditioning, memory=None)
        self.memory = [(k.repeat_interleave(self.takes, 0), v.repeat_interleave(self.takes, 0)) for k, v in memory]
        code = self._dice(scores[0, -1])
        # all takes go on from here
        self.current = torch.full((self.takes, 1), code.item(), device=scores.device)

    def advance(self):
        scores, self.memory = self.backbone(self.codebook(self.current), memory=self.memory)
        self.current = self._dice(scores[:, -1])
        return self.current

    @torch.inference_mode()
    def perform(self, conditioning, frames):
        self.eval()
        self.begin(conditioning)
        heard = [self.current]
        for _ in range(frames - 1):
            heard.append(self.advance())
        return torch.cat(heard, 1)
