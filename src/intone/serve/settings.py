"""What a person can ask of `intone serve`."""

import re
from dataclasses import dataclass
from typing import Literal

from intone.errors import UserError
from intone.fields import Checked, setting
from intone.settings import Auto


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Checked):
    """`intone serve`: a run behind an HTTP address, for OpenAI's clients and for a browser."""

    # run to serve: NAME, NAME/STAGE, a path, or latest
    from_run: str = setting("latest", flag="from")
    # address to listen on; anything but 127.0.0.1 lets other machines in
    host: str = "127.0.0.1"
    # port to listen on; 0: any free one
    port: int = setting(8000, least=0, most=65_535)
    # key that every request must bring; better given as INTONE_API_KEY, which other users cannot see
    api_key: str | None = None
    # web pages of other places that may use the server: https://HOST, or * for all
    cors_origin: tuple[str, ...] = ()
    # temperature where a request names none
    temperature: float = setting(0.6, least=0, most=2)
    # sample among this many of the likeliest tokens where a request does not say; none: all
    top_k: int | None = setting(50, least=1)
    # let the model use its calculator where a request does not say
    tools: bool = True
    # let it run Python as well, in a sandbox, where this machine has what contains it
    python: bool = False
    # prompts that may wait for a slot; more are told to come back
    max_queue: int = setting(512, least=1)
    # tokens of prompts that may wait together
    max_queue_tokens: int = setting(262_144, least=1)
    # seconds a request may wait for its first token
    queue_timeout_s: float = setting(120.0, least=0.1)
    # seconds a request may take altogether
    timeout_s: float = setting(600.0, least=0.1)
    # largest body of a request in MiB
    max_body_mib: float = setting(4.0, least=0.001)
    # seconds a client may take to send a request, or to read on while an answer streams
    client_timeout_s: float = setting(30.0, least=0.1)
    # seconds that running answers get to end after SIGTERM or Ctrl-C
    drain_s: float = setting(30.0, least=0)
    # texts that are written at once; auto: as suits the device
    num_slots: int | Auto = setting("auto", least=1)
    # where to compute
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    # number format of the weights; auto: the one it was trained in
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # how a CPU keeps matrices; auto: in dtype, int8 where eval --weights int8 found it cheap
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for origin in self.cors_origin:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise UserError(
                    f"--cors-origin {origin} is no origin", value=origin, fix="for example https://chat.example.org"
                )
        if self.api_key is not None and not self.api_key.strip():
            raise UserError("--api-key is blank", value="", fix="leave it out, or give a long random text")
