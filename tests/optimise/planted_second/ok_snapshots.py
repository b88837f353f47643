import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional

import torch


class SnapshotDir:
    """Keeps the newest `keep` training states of a run."""

    def __init__(self, root: os.PathLike, keep: int = 3):
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.keep = keep

    def _all(self):
        return sorted(self.root.glob("step-*.pt"))

    def save(self, step: int, net, opt, loader) -> Path:
        payload: Dict[str, Any] = {
            "step": step,
            "net": net.state_dict(),
            "opt": opt.state_dict(),
            "loader": loader.state_dict(),
            "rng": torch.get_rng_state(),
        }
        final = self.root / f"step-{step:08d}.pt"
        fd, tmp = tempfile.mkstemp(dir=self.root, suffix=".tmp")
        try:
            with os.fdopen(fd, "wb") as fh:
                torch.save(payload, fh)
                fh.flush()
                os.fsync(fh.fileno())
            os.replace(tmp, final)
        except BaseException:
            os.unlink(tmp)
            raise
        for old in self._all()[: -self.keep]:
            old.unlink()
        return final

    def restore(self, net, opt, loader) -> Optional[int]:
        found = self._all()
        if not found:
            return None
        payload = torch.load(found[-1], map_location="cpu", weights_only=True)
        net.load_state_dict(payload["net"])
        opt.load_state_dict(payload["opt"])
        loader.load_state_dict(payload["loader"])
        torch.set_rng_state(payload["rng"])
        return payload["step"]
