"""Compares a code base with the catalogue of features, by its syntax trees: what is there, what is not, and where."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from intone.optimise.planner.chance import Chance, State
from intone.optimise.scan.decode import DecodeLoop, decode_loops
from intone.optimise.scan.expressions import called, last_name
from intone.optimise.scan.loops import TrainLoop, train_loops
from intone.optimise.scan.run import Scan, sure_findings
from intone.optimise.scan.source import Scope

MOST_PLACES = 4  # of evidence that is shown for one entry
EXAMPLE_TOKENS = 100  # prompt and answer of the arithmetic on the cache
# names that stand for one option of sampling
OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("temperature", r"temperature|temp", "how sharp the choice is; 0 repeats the likeliest"),
    ("top-k", r"top_?k", "cuts off all but the k likeliest tokens (Fan et al. 2018)"),
    ("top-p", r"top_?p|nucleus", "cuts off the unreliable tail by its share (Holtzman et al. 2020)"),
    ("min-p", r"min_?p", "cuts off by the likeliest token's probability (Nguyen et al. 2024)"),
    ("penalties", r"(repetition|presence|frequency)_penalt(y|ies)|rep_pen(alty)?", "fewer loops (Keskar et al. 2019)"),
    ("seed", r"seed|generator|rng", "an answer can be made again"),
)
CACHE = re.compile(r"cache|past|kv", re.I)
Place = tuple[str, str]  # "file:line", what stands there


@dataclass(frozen=True)
class View:
    """A scan with the loops in it that train and generate."""

    scan: Scan
    trains: tuple[TrainLoop, ...]
    decodes: tuple[DecodeLoop, ...]

    def calls(self) -> Iterator[tuple[Scope, ast.Call, str]]:
        """Every call with its full name as far as it is known."""
        for module in self.scan.project.modules:
            for scope in module.scopes:
                for call in scope.calls:
                    yield scope, call, called(call, scope)

    def found(self, kind: str) -> list[str]:
        """What the scan's rules of a kind say, as evidence."""
        return [f"{one.path}:{one.line} {one.message}" for one in sure_findings(self.scan) if one.kind == kind]


def view_of(scan: Scan) -> View:
    project = scan.project
    trains = [loop for module in project.modules for loop in train_loops(module, project)]
    decodes = [loop for module in project.modules for loop in decode_loops(module, project)]
    return View(scan, tuple(trains), tuple(decodes))


def chances_in(scan: Scan) -> list[Chance]:
    """The whole catalogue for a code base, ranked: what is missing and bounded highest comes first."""
    view = view_of(scan)
    found = [*caches(view), *sampling(view)]
    found += [check(view) for check in CHECKS]
    return sorted((replace(one, evidence=one.evidence[:MOST_PLACES]) for one in found), key=lambda one: one.rank)


# --- generation ------------------------------------------------------------------------------------------------------


def caches(view: View) -> list[Chance]:
    """One entry for each function that generates."""
    n = EXAMPLE_TOKENS
    factor = (n * n + n * (n - 1) / 2) / (2 * n - 1)
    benefit = (
        f"at most {factor:.0f} times fewer tokens go through the model for {n} new tokens behind {n};"
        " time follows less than that where single tokens are bound by memory"
    )
    source = "arithmetic: n prompt and m new tokens are nm + m(m-1)/2 passes without a cache, n + m - 1 with one"
    rows: dict[tuple[str, str], Chance] = {}

    def enter(path: str, function: str, state: State, evidence: list[str]) -> None:
        key = (path, function)
        if key in rows and rows[key].state == "missing":
            return
        name = "kv-cache" if function == "<module>" else f"kv-cache:{function}"
        bound = factor if state == "missing" else None
        rows[key] = Chance(
            name, f"key-value cache in {function}", state, tuple(evidence), benefit, source, bound, weight=2
        )

    for finding in sure_findings(view.scan):
        if finding.kind == "no-kv-cache":
            place = f"{finding.path}:{finding.line} {finding.message}"
            enter(finding.path, finding.function, "missing", [place, *finding.evidence])
    for decode in view.decodes:
        path = decode.scope.module.path
        for item in decode.model_calls:
            call = item.node
            assert isinstance(call, ast.Call)
            words = [*(ast.unparse(arg) for arg in call.args), *(word.arg or "**" for word in call.keywords)]
            has_cache = any(CACHE.search(word) for word in words)
            where = f"{item.scope.module.path}:{item.line} {item.scope.module.line_of(call)}"
            enter(path, decode.scope.name, "present" if has_cache else "partly", [
                where if has_cache else f"{where} (hands over no cache by that name)"
            ])  # fmt: skip
    if not rows:
        return [Chance("kv-cache", "key-value cache", "not seen", ("no loop that generates was recognised",), benefit,
                       source, weight=2)]  # fmt: skip
    return list(rows.values())


def sampling(view: View) -> list[Chance]:
    """One entry for each option of sampling: a parameter or a field of that name, which some code reads."""
    source = "the papers named; what it brings for a model is measured by its own evaluation"
    if not generates(view):
        why = ("no code that chooses tokens was recognised",)
        return [Chance("sampling", "options of sampling", "not seen", why, "control over what is drawn", source)]
    rows = []
    for name, pattern, benefit in OPTIONS:
        offered = list(offers(view, re.compile(f"^(?:{pattern})$", re.I)))
        used = [f"{where} {what}" for where, what, is_read in offered if is_read]
        unread = [f"{where} {what} is never read" for where, what, is_read in offered if not is_read]
        state: State = "present" if used else "partly" if unread else "missing"
        evidence = used or unread or [f"no parameter or field of that name in {view.scan.num_files} files"]
        rows.append(Chance(f"sampling:{name}", f"{name} in sampling", state, tuple(evidence), benefit, source))
    return rows


def generates(view: View) -> bool:
    names = ("multinomial", "argmax", "categorical", "choose_token", "sample_next_token")
    return bool(view.decodes) or any(last_name(call.func) in names for _, call, _ in view.calls())


def offers(view: View, name: re.Pattern[str]) -> Iterator[tuple[str, str, bool]]:
    """(place, name, whether it is read) of parameters and fields, those of code that generates first."""
    generating = {loop.scope.module.path for loop in view.decodes}
    modules = sorted(view.scan.project.modules, key=lambda one: (one.path not in generating, one.path))
    reads = {
        node.id if isinstance(node, ast.Name) else node.attr
        for module in modules for node in ast.walk(module.tree)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
    }  # fmt: skip
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.arg) and name.match(node.arg):
                yield f"{module.path}:{node.lineno}", node.arg, node.arg in reads
            elif isinstance(node, ast.ClassDef):
                typed = [part for part in node.body if isinstance(part, ast.AnnAssign)]
                for target in [part.target for part in typed if isinstance(part.target, ast.Name)]:
                    if name.match(target.id):
                        yield f"{module.path}:{target.lineno}", target.id, target.id in reads


# --- training --------------------------------------------------------------------------------------------------------


def entry(
    view: View, name: str, title: str, benefit: str, source: str, *, weight: int, full: Iterable[Place],
    part: Iterable[Place] = (), faults: Iterable[str] = (), only_training: bool = True,
) -> Chance:  # fmt: skip
    """An entry by what was found: all of it, a part of it, or a rule of the scan that says it is not so."""
    whole, some, wrong = ([*full], [*part], [*faults])
    shown = [f"{where} {what}".strip() for where, what in whole or some]
    if only_training and not view.trains and not whole:
        return Chance(name, title, "not seen", ("no training loop was recognised",), benefit, source, weight=weight)
    if wrong:
        state: State = "partly" if whole or some else "missing"
        return Chance(name, title, state, (*wrong[:2], *shown), benefit, source, weight=weight)
    if whole:
        return Chance(name, title, "present", tuple(shown), benefit, source, weight=weight)
    if some:
        return Chance(name, title, "partly", tuple(shown), benefit, source, weight=weight)
    loops = [f"{one.backwards[0].scope.module.path}:{one.backwards[0].line} trains without it" for one in view.trains]
    return Chance(name, title, "missing", tuple(loops), benefit, source, weight=weight)


def calls_of(view: View, pattern: str) -> list[Place]:
    """The calls whose full name matches."""
    wanted = re.compile(pattern)
    return [
        (f"{scope.module.path}:{call.lineno}", scope.module.line_of(call)[:90])
        for scope, call, name in view.calls() if wanted.search(name or last_name(call.func) or "")
    ]  # fmt: skip


def names_of(view: View, pattern: str, *, training_only: bool = False) -> list[Place]:
    """Functions, parameters, fields and variables whose name matches; one a file."""
    wanted = re.compile(pattern, re.I)
    training = {one.scope.module.path for one in view.trains}
    found = []
    for module in view.scan.project.modules:
        if training_only and module.path not in training:
            continue
        for node in ast.walk(module.tree):
            word = (
                node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else node.id
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else ""
            )  # fmt: skip
            if word and wanted.search(word):
                found.append((f"{module.path}:{node.lineno}", word))  # type: ignore[attr-defined]
                break
    return found


def profiling(view: View) -> Chance:
    return entry(
        view, "profiling", "profiling hooks in training", "shows which part of a step to work on; no speed by itself",
        "optimiser.md 3: cheap signals, then a short profile", weight=1,
        full=calls_of(view, r"profiler\.|record_function|cuda\.Event|nvtx|emit_nvtx|^torch\.profiler"),
        part=[place for place in calls_of(view, r"perf_counter|^time\.time$|monotonic")
              if place[0].rpartition(":")[0] in {one.scope.module.path for one in view.trains}],
    )  # fmt: skip


def configs(view: View) -> Chance:
    return entry(
        view, "configs", "training configs or presets", "a run can be made again from one name", "practice", weight=1,
        full=names_of(view, r"preset|recipe|TrainConfig|TrainingConfig|TrainArgs|TrainingArguments"),
        part=[*calls_of(view, r"add_argument$|parse_args$")[:2], *names_of(view, r"config_keys|user_config")],
    )  # fmt: skip


def compiling(view: View) -> Chance:
    return entry(
        view, "compile", "compiled training step",
        "bounded by the share of a step outside matrix products; intone optimise measures it",
        "torch.compile; optimiser.md 1: a gain holds for one stage, shape and machine", weight=2,
        full=calls_of(view, r"^torch\.compile$|^compile$|torch\.jit\.script"), faults=view.found("compile"),
    )  # fmt: skip


def packing(view: View) -> Chance:
    return entry(
        view, "packing", "packed rows instead of padding",
        "at most 1 / (1 - share of padded positions) times the tokens a second; intone optimise measures the share",
        "arithmetic", weight=2, faults=view.found("padding"),
        # slices of one long stream of tokens have no padding either
        full=names_of(view, r"(^|_)pack(ed|ing|er|_|$)|cu_seqlens|best_?fit|bin_?pack|token_(buffer|stream)")
        + calls_of(view, r"^numpy\.memmap$|^np\.memmap$"),
    )  # fmt: skip


def resuming(view: View) -> Chance:
    optimizer = [
        (f"{scope.module.path}:{call.lineno}", scope.module.line_of(call)[:90])
        for scope, call, _ in view.calls()
        if last_name(call.func) == "load_state_dict" and isinstance(call.func, ast.Attribute)
        and re.search(r"optim|opt(_|$)", ast.unparse(call.func.value), re.I)
    ]  # fmt: skip
    return entry(
        view, "resume", "going on after a stop", "at most the whole of a run that was stopped", "practice", weight=3,
        full=optimizer or names_of(view, r"restore|resume_from|newest_checkpoint"),
        part=calls_of(view, r"load_state_dict$"), faults=view.found("data-order"),
    )  # fmt: skip


def metrics(view: View) -> Chance:
    return entry(
        view, "metrics", "tokens a second and MFU are logged", "says how far from the machine's rate a run is",
        "practice", weight=1, full=names_of(view, r"(^|_)mfu|tok(en)?s?_per_s(ec)?|tok_sec|throughput"),
        part=calls_of(view, r"wandb\.|add_scalar$|SummaryWriter|CSVLogger"),
    )  # fmt: skip


def precision(view: View) -> Chance:
    half = [
        (f"{module.path}:{node.lineno}", ast.unparse(node))
        for module in view.scan.project.modules for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("bfloat16", "float16")
    ][:MOST_PLACES]  # fmt: skip
    return entry(
        view, "mixed-precision", "mixed precision",
        "at most this machine's rate of products in bf16 over fp32: intone tune --facts measures both",
        "Micikevicius et al. 2018", weight=2, full=calls_of(view, r"autocast$|GradScaler$"), part=half,
    )  # fmt: skip


def clipping(view: View) -> Chance:
    return entry(
        view, "grad-clip", "gradient clipping", "guards against a step that spoils the weights; no speed",
        "Pascanu et al. 2013; Muon-like optimizers normalise matrices and need it less", weight=1,
        full=calls_of(view, r"clip_grad_(norm|value)_$|clip_grad"),
    )  # fmt: skip


def evaluating(view: View) -> Chance:
    functions = names_of(view, r"^(evaluate|validate|estimate_loss|eval_|evaluation)|_eval(uate)?$|^run_.*eval")
    return entry(
        view, "eval-loop", "evaluation during training", "shows when a run stops getting better", "practice", weight=1,
        full=functions, part=calls_of(view, r"\.eval$"), faults=view.found("eval-mode"),
    )  # fmt: skip


def atomicity(view: View) -> Chance:
    saves = calls_of(view, r"^torch\.save$|save_file$|(^|\.)save_checkpoint$")
    moved = calls_of(view, r"^os\.(replace|rename)$|\.replace_file$")
    return entry(
        view, "atomic-checkpoint", "checkpoints that a stop cannot damage", "at most the run since the last good one",
        "POSIX rename; the write and the name are two steps", weight=3, faults=view.found("checkpoint"),
        full=moved if saves else [], part=saves,
    )  # fmt: skip


CHECKS: tuple[Callable[[View], Chance], ...] = (
    compiling, packing, precision, resuming, atomicity, profiling, configs, metrics, clipping, evaluating,
)  # fmt: skip
