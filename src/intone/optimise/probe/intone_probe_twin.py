"""Matrix products whose sizes do not fit the device: each is timed beside its twin, the same product padded.

The products are those of the profile, with the layout that they had there; the twin's sizes are the next multiples.
Used behind a look, by the probe and by the clocks in our own worker: it needs torch and the standard library alone.
"""

import json
import math
import time

MATRICES = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::bmm": (0, 1), "aten::baddbmm": (1, 2)}
DTYPES = {"float": "float32", "c10::BFloat16": "bfloat16", "c10::Half": "float16", "double": "float64"}
FINE, COARSE = 8, 64  # what sizes are padded to: small ones finely, from LARGE on coarsely (tiles of GPUs are 64 wide)
LARGE = 512
LEAST = 8  # sizes up to this one are no tiles at all
MOST_PRODUCTS = 3  # that are timed: those with the most operations
MOST_BYTES = 2**30  # of both sides of one product
LEAST_SHARE = 0.01  # of a step, below which a product is not worth a twin
BLOCK_S = 0.02  # of products that are timed together
ROUNDS = 4  # there and back; of each side the fastest counts: what interferes only adds


def twins(torch, trace, steps, step_s, device):
    """[{"sizes": [b, m, k, n], "dtype", "twin": [b, m, k, n], "share", "gain"}], the largest first.

    trace: path of a profile over so many steps; step_s: of a step without the profiler. share: of the step's time that
    the product takes, by its own timing; gain: its time over its twin's. Empty where all sizes fit.
    """
    with open(trace) as file:
        counts = products(json.load(file)["traceEvents"])
    odd = [(entry, count) for entry, count in counts.items() if padded(entry[0]) != entry[0]]
    odd.sort(key=lambda pair: -pair[1] * math.prod(pair[0][0]))
    found = []
    for entry, count in odd[:MOST_PRODUCTS]:
        sizes, dtype, _ = entry
        twin = padded(sizes)
        if bytes_of(sizes, dtype, torch) + bytes_of(twin, dtype, torch) > MOST_BYTES:
            continue
        seconds = compared(torch, entry, twin, device)
        share = count / steps * seconds[0] / step_s
        if share >= LEAST_SHARE:
            found.append({"sizes": list(sizes), "dtype": dtype, "twin": list(twin), "share": min(share, 1.0),
                          "gain": seconds[0] / seconds[1]})  # fmt: skip
    return found


def products(events):
    """{((b, m, k, n), dtype, (is_left_turned, is_right_turned)): how often}"""
    counts: dict = {}
    for event in events:
        args = event.get("args", {})
        places, shapes = MATRICES.get(event.get("name", "")), args.get("Input Dims", [])
        if event.get("cat") != "cpu_op" or places is None or len(shapes) <= places[1]:
            continue
        left, right = (shapes[place] for place in places)
        dtype = DTYPES.get(args.get("Input type", [""] * 3)[places[0]])
        if dtype is None or not left or not right:
            continue
        strides = args.get("Input Strides") or [[]] * len(shapes)
        turned = tuple(is_turned(strides[place]) for place in places)
        sizes = (left[0] if len(left) == 3 else 1, left[-2], left[-1], right[-1])
        key = (sizes, dtype, turned)
        counts[key] = counts.get(key, 0) + 1
    return counts


def is_turned(strides):
    """Whether a matrix lies in memory column by column."""
    return len(strides) > 1 and strides[-1] != 1 and strides[-2] == 1


def padded(sizes):
    """The sizes of the twin; how many matrices there are stays."""
    return (sizes[0],) + tuple(up(size) for size in sizes[1:])


def up(size):
    step = COARSE if size >= LARGE else FINE
    return size if size <= LEAST or size % FINE == 0 else -(-size // step) * step


def bytes_of(sizes, dtype, torch):
    count, m, k, n = sizes
    return count * (m * k + k * n + m * n) * torch.empty((), dtype=getattr(torch, dtype)).element_size()


def compared(torch, entry, twin, device):
    """(seconds of the product, seconds of its twin): the fastest block of each, in the order A B B A."""
    sizes, dtype, turned = entry
    wait = torch.cuda.synchronize if str(device).startswith("cuda") else int
    with torch.no_grad():
        sides = [made(torch, of, dtype, turned, device) for of in (sizes, twin)]
        repeats = 1
        for left, right in sides:  # the first calls also warm up
            seconds = timed(torch, left, right, 2, wait)
            repeats = max(repeats, min(10_000, math.ceil(BLOCK_S / max(seconds, 1e-7))))
        best = [math.inf, math.inf]
        for number in range(ROUNDS):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                left, right = sides[side]
                best[side] = min(best[side], timed(torch, left, right, repeats, wait))
    return tuple(best)


def made(torch, sizes, dtype, turned, device):
    """Matrices of these sizes that lie in memory as they did in the program."""
    count, m, k, n = sizes
    pair = []
    for (rows, columns), is_turned_now in zip(((m, k), (k, n)), turned):  # noqa: B905  Python 3.8 has no strict
        shape = (columns, rows) if is_turned_now else (rows, columns)
        whole = torch.zeros(count, *shape, dtype=getattr(torch, dtype), device=device).normal_()
        whole = whole.transpose(1, 2) if is_turned_now else whole
        pair.append(whole[0] if count == 1 else whole)
    return pair


def timed(torch, left, right, repeats, wait):
    """Seconds of one product."""
    wait()
    begin_s = time.perf_counter()
    for _ in range(repeats):
        torch.matmul(left, right)
    wait()
    return (time.perf_counter() - begin_s) / repeats
