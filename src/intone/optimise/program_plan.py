"""The plan for somebody else's training program: from findings, and from what can be tried without any, to items."""

from collections.abc import Sequence
from pathlib import Path

from intone.optimise.codemods import sites
from intone.optimise.detect.finding import Bottleneck
from intone.optimise.items import Item, Plan
from intone.optimise.signals import Signals

PARITY = "losses step by step equal the program's own, within its own spread and rounding; of generation, its tokens"
# glibc then keeps blocks of up to 1 GiB instead of giving them back: every step takes them again (mallopt(3))
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def plan_program(findings: Sequence[Bottleneck], signals: Signals, root: Path, cores: int) -> Plan:
    """Items for the program below root. cores: physical ones."""
    by_id = {finding.detector: finding for finding in findings}
    items: list[Item] = []
    if signals.device == "cpu":
        items += thread_items(signals, cores, by_id.get("D26"))
        items.append(environment_item(
            "memory", "Keep freed memory", KEEP_MEMORY, None,
            "a step takes and gives back the same memory; giving it back costs page faults",
        ))  # fmt: skip
    if "D12" in by_id:
        items.append(environment_item(
            "segments", "Let device memory grow in place", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
            by_id["D12"], "memory in pieces of fixed size cannot be joined",
        ))  # fmt: skip
    fused = code_item(
        root, "fused_optimizer", "Update all parameters in one pass", by_id.get("D18"), signals.parts.get("optimizer"),
        "the optimizer goes over the parameters once per operation; a fused one goes over them once",
        "the update rounds otherwise",
    )  # fmt: skip
    if "D18" in by_id and not fused:
        fused = [instruction(by_id["D18"], "Update all parameters in one pass", (
            "give the optimizer fused=True where the named line makes it; PyTorch has fused ones for CPUs too"
        ))]  # fmt: skip
    items += fused
    if not signals.compiled:
        items += code_item(
            root, "compile_model", "Compile the model", by_id.get("D3") or by_id.get("D2"), signals.idle_share,
            "operators run one by one; compiled ones are fused and need no Python between them",
            "rounding differs; compiling takes its time at the start of every run, which is not part of the verdict",
        )  # fmt: skip
    if "D6" in by_id:
        made = code_item(
            root, "loader_workers", "Load data in processes of their own", by_id["D6"], signals.parts.get("data"),
            "the training process waits while it makes the next batch itself",
            "random augmentation inside the data set draws other numbers",
        )  # fmt: skip
        items += made or [instruction(by_id["D6"], "Make the next batch while this one is trained on", (
            "move the work at the named line into a thread or a process that is one batch ahead"
        ))]  # fmt: skip
    told = {
        "D1": ("Let more rows through at once", "raise the micro-batch and lower the accumulation by the same factor, "
               "so that tokens per optimizer step stay what they are; where nothing is accumulated, more rows are "
               "another recipe"),
        "D5": ("Do not wait for the device in every step", "keep the value on the device, read it every k-th step"),
        "D8": ("Generate with a key-value cache", "keep keys and values of earlier tokens, feed only the newest one"),
        "D9": ("Generate many texts together", "put the prompts into one batch with their own lengths"),
        "D13": ("Compute the loss in pieces", "apply the head and the loss to a few rows at a time"),
        "D14": ("Use the fast number format", "run matrix products under torch.autocast in the fast format"),
        "D15": ("Pad the sizes of the product", "make the vocabulary, the heads or the rows of a batch a multiple of "
                "64, and leave the padded part out of the loss"),
        "D16": ("Pack rows instead of padding them", "put several texts into one row with a document mask"),
        "D19": ("Exchange gradients once per step", "run all micro-batches but the last under the model's no_sync(), "
                "forward and backward; or reduce by hand behind the last one"),
        "D20": ("Hide the exchange behind the backward pass", "let DistributedDataParallel exchange while it goes back "
                "(larger or smaller bucket_cap_mb), accumulate over more micro-batches where the recipe allows it, or "
                "exchange in half the bytes"),
        "D21": ("Even out the processes", "take reading, logging and evaluation out of the slow process's steps, give "
                "all of them equal work, and look at its device"),
        "D22": ("Draw every sample by itself", "sample from each row's own logits"),
        "D23": ("Leave out rows that teach nothing", "drop them before they reach the model, and stop at a loss that "
                "is no number"),
        "D25": ("Keep all activations", "leave torch.utils.checkpoint out, or keep it for the layers that do not fit"),
        "D28": ("Compute constants once", "make the tensor at the named line when the model is made, and keep it as a "
                "buffer that is not saved"),
        "D27": ("Measure on a quiet machine", "end other programs, wait until the clock is steady, and start again"),
    }  # fmt: skip
    items += [instruction(by_id[name], title, words) for name, (title, words) in told.items() if name in by_id]
    return Plan.of(items)


def thread_items(signals: Signals, cores: int, finding: Bottleneck | None) -> list[Item]:
    """Other numbers of CPU threads that are worth a try: what the look found faster, else one and the physical cores.

    Where the look tried them and found none faster there is nothing to try again.
    """
    now = signals.threads
    counts = sorted({1, cores})
    if signals.threads_gain is not None:
        counts = [signals.threads_gain[0]] if finding is not None else []
    return [
        environment_item(
            f"threads-{count}", f"Compute on {count} thread{'s' * (count > 1)}",
            {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}, finding,
            f"{now} threads share the cores; small operators gain nothing from more and wait for each other",
        )
        for count in counts if now is not None and count != now
    ]  # fmt: skip


def environment_item(
    name: str, title: str, variables: dict[str, str], finding: Bottleneck | None, hypothesis: str
) -> Item:
    return Item(
        name, title, finding.detector if finding else None, hypothesis, finding.evidence if finding else (),
        (1.0, finding.bound if finding else None), "environment", variables, "none: no code is changed", PARITY,
        "start the program without these variables", finding.place if finding else None,
        finding.signal if finding else "step_s",
    )  # fmt: skip


def code_item(
    root: Path, codemod: str, title: str, finding: Bottleneck | None, share: float | None, hypothesis: str, risk: str
) -> list[Item]:
    """An item for the codemod where it applies somewhere below root; without a finding it is tried all the same."""
    found = sites(root, codemod)
    if not found:
        return []
    evidence = finding.evidence if finding else ((f"{share:.1%} of the time",) if share is not None else ())
    places = ", ".join(f"{site.path}:{site.line}" for site in found[:3])
    return [Item(
        codemod.replace("_", "-"), title, finding.detector if finding else None, hypothesis, evidence,
        (1.0, finding.bound if finding else None), "code", {"codemod": codemod}, risk, PARITY,
        "git revert of its one commit", places, finding.signal if finding else "step_s",
    )]  # fmt: skip


def instruction(finding: Bottleneck, title: str, words: str) -> Item:
    """What a person, or a model, has to do by hand."""
    return Item(
        finding.detector.lower(), title, finding.detector, finding.title, finding.evidence, (1.0, finding.bound),
        "instruction", {"words": words}, "needs a person's judgement", PARITY, "git revert of its commit",
        finding.place, finding.signal,
    )  # fmt: skip
