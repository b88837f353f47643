"""Stands between a comparison and a foreign program: lines from stdin go to the probe inside it, answers to stdout."""

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from intone.optimise.program import Program, end_all
from intone.paths import read_json, write_json

POLL_S = 0.2


def main() -> int:
    """Runs FOLDER/program.json until stdin ends or asks to quit; its output goes to stderr."""
    folder = Path(sys.argv[1])
    asked = read_json(folder / "program.json")
    program = Program(tuple(asked["words"]), Path(asked["folder"]), asked["env"])
    # a path of a socket holds about 100 characters, less than a deep folder has: the name is given relative to it
    os.chdir(folder)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("s")
    listener.listen(1)
    place = short_place(folder)
    plan = folder / "plan.json"
    asked_of_probe = {
        "mode": "live", "socket": place, "out": str(folder / "p.json"), "warm": asked["warm"], "steps": 1,
        "kind": asked["kind"],
    }  # fmt: skip
    write_json(plan, asked_of_probe)
    process = subprocess.Popen(
        program.words, cwd=program.folder, env=program.environment(plan), stdin=subprocess.DEVNULL, stdout=2, stderr=2
    )
    try:
        channel = accepted(listener, process)
        if channel is None:
            return ended(process)
        return relay(channel, process)
    finally:
        # it is in our process group: whoever ends us ends all that it started too, but for torchrun's workers
        end_all(process)
        Path(place).unlink(missing_ok=True)


def short_place(folder: Path) -> str:
    """A path of the socket that is short enough for every system."""
    path = folder / "s"
    if len(str(path)) < 100:
        return str(path)
    link = Path(f"/tmp/intone-{os.getpid()}.s")
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return str(link)


def accepted(listener: socket.socket, process: "subprocess.Popen[bytes]") -> socket.socket | None:
    """The probe's connection; None where the program ended first."""
    while True:
        readable, _, _ = select.select([listener], [], [], POLL_S)
        if readable:
            return listener.accept()[0]
        if process.poll() is not None:
            return None


def relay(channel: socket.socket, process: "subprocess.Popen[bytes]") -> int:
    """Copies whole lines both ways until one side ends."""
    stdin, stdout = sys.stdin.buffer.fileno(), sys.stdout.buffer
    while True:
        readable, _, _ = select.select([stdin, channel], [], [])
        if channel in readable:
            piece = channel.recv(1 << 16)
            if not piece:
                return ended(process)
            stdout.write(piece)
            stdout.flush()
        if stdin in readable:
            piece = os.read(stdin, 1 << 16)
            if not piece:
                return 0
            channel.sendall(piece)
            if b'"quit"' in piece:
                return 0


def ended(process: "subprocess.Popen[bytes]") -> int:
    """Says that the program is over, where a block was still wanted."""
    code = process.wait()
    message = f"the program ended with exit code {code} before the measuring was done"
    fix = "give it more steps, so that it does not end by itself"
    print(json.dumps({"error": message, "fix": fix}), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
