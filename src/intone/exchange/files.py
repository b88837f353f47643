"""Foreign files, read with nothing in them being run: archives of torch.save, safetensors, JSON."""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from intone.errors import Damaged, UserError


def read_pt(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, mapped, not read; `_orig_mod.` of compiled models taken off.

    Only tensors are unpickled. Raises UserError where the file asks for anything else or holds other things than
    named tensors, Damaged where it is cut off or a checksum of its parts is wrong.
    """
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f"asks for {named[1]}" if named else "holds more than tensors"
        raise UserError(
            f"{path} {asks}: a checkpoint needs tensors and nothing else",
            value=str(path),
            fix="do not open this file with other programs either; ask its author for the weights as safetensors",
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from None
    if not isinstance(content, dict) or not content:
        raise _unlike(path, f"holds no named tensors but a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _unlike(path, f"holds {str(key)[:200]!r}, a {type(value).__name__}: not the weights of a model alone")
    tensors = {key.removeprefix("_orig_mod."): value for key, value in content.items()}
    if len(tensors) != len(content):
        raise _unlike(path, "holds one weight twice, with and without _orig_mod.")
    claimed = sum(value.numel() * value.element_size() for value in tensors.values())
    if claimed > path.stat().st_size:
        raise _unlike(path, f"claims {claimed:,} bytes of weights and has {path.stat().st_size:,}")
    return tensors


def check_archive(path: Path) -> None:
    """Raises Damaged unless the file is a whole archive of uncompressed parts whose checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
            if packed:  # torch never does; it could be made to unpack to any size
                raise _damaged(path, f"its part {packed[0]} is compressed")
            wrong = archive.testzip()
    except PermissionError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, str(error)) from None
    if wrong:
        raise _damaged(path, f"its part {wrong} does not have its checksum")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises Damaged where it is none."""
    try:
        return load_file(path)
    except PermissionError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, f"{error}") from None


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(
        f"{path} is cut off or damaged ({why})", value=str(path), fix="copy or download it again from its source"
    )


def _unlike(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} {what}",
        value=str(path),
        fix="name the folder of a checkpoint as its program wrote it: model_*.pt is the weights, optim_*.pt is not",
    )


def bad_setting(path: Path, what: str, value: Any, *, fix: str = "copy it again from its source") -> UserError:
    """The error for a foreign setting that cannot be: its file, what is wrong, the value."""
    shown = str(value)[:80]
    return UserError(f"{path}: {what} {shown!r}", value=shown, fix=fix)


def read_json_object(path: Path) -> dict[str, Any]:
    """A foreign settings file. Raises UserError where it is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON: {error}", value=str(path), fix="copy it again from its source"
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__}, settings are an object",
            value=str(path),
            fix="copy it again from its source",
        )
    return value


def whole_number(value: Any, name: str, path: Path, *, least: int = 1) -> int:
    """A whole number of a foreign settings file. Raises UserError."""
    if type(value) is not int or not least <= value < 2**31:
        raise bad_setting(path, f"{name} is not a whole number from {least} but", value)
    return value


def positive_number(value: Any, name: str, path: Path) -> float:
    """A number above 0 of a foreign settings file. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise bad_setting(path, f"{name} is not a number above 0 but", value)
    return float(value)
