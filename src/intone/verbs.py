"""The verbs as a static table, so that `intone --help` answers without importing anything else."""

from collections.abc import Mapping
from typing import NamedTuple

import intone


class Verb(NamedTuple):
    """One verb: its line in `--help`, its settings class, and the function that does it.

    settings is a class of intone.settings, or "module:class". target and forecast are "module:function", imported
    when called with (settings, origins). target returns records.Answer; forecast returns (text, object for JSON) and
    is what `--show` prints before the settings. suites: words behind the verb that are verbs of their own.
    has_other: other settings may stand behind `--`; target then gets a third argument, (settings, origins) of them
    laid over the first, or None. takes_command: a program of somebody else's may stand behind `--`; target then gets
    its words, or None.
    """

    summary: str
    settings: str
    target: str
    forecast: str | None = None
    suites: Mapping[str, "Verb"] = {}
    has_other: bool = False
    takes_command: bool = False


# what `intone bench SUITE` measures, one row a suite
SUITES: dict[str, Verb] = {
    "casestudy": Verb(
        "the published case study's tables again, measured together on this machine",
        "intone.bench.casestudy_settings:CasestudySettings",
        "intone.bench.casestudy:bench_casestudy",
    ),
    "autobatch": Verb(
        "part of casestudy: what the settled micro-batch is worth",
        "intone.bench.casestudy_settings:AutobatchSettings",
        "intone.bench.casestudy:bench_autobatch",
    ),
    "compile": Verb(
        "part of casestudy: the same steps with and without compiled code",
        "intone.bench.casestudy_settings:CompileSettings",
        "intone.bench.casestudy:bench_compile",
    ),
    "combined": Verb(
        "part of casestudy: all changes together, and each taken out alone",
        "intone.bench.casestudy_settings:CombinedSettings",
        "intone.bench.casestudy:bench_combined",
    ),
    "inference": Verb(
        "part of casestudy: generation without a cache, with one, in batches",
        "intone.bench.casestudy_settings:InferenceSettings",
        "intone.bench.casestudy:bench_inference",
    ),
    "optimise": Verb(
        "the case study's start handed to optimise: which faults it finds and mends",
        "intone.bench.casestudy_settings:OptimiseSettings",
        "intone.bench.optimise:bench_optimise",
    ),
    "infer": Verb(
        "how fast the engine answers, alone and beside nanochat and transformers",
        "intone.bench.infer_settings:BenchInferSettings",
        "intone.bench.infer:bench_infer",
    ),
    "transformers": Verb(
        "our training step against transformers' with the same weights, in turns",
        "intone.bench.casestudy_settings:TransformersSettings",
        "intone.bench.train_transformers:bench_transformers",
    ),
    "prove": Verb(
        "the measuring itself: false alarms, planted slow-downs, seconds per verdict",
        "intone.bench.settings:BenchProveSettings",
        "intone.bench.prove:bench_prove",
    ),
    "serve": Verb(
        "256 HTTP streams beside the engine alone, and hostile requests",
        "intone.bench.serve_settings:BenchServeSettings",
        "intone.bench.serve:bench_serve",
    ),
    "tune": Verb(
        "the micro-batch that is found against all others, and what finding it takes",
        "intone.bench.settings:BenchTuneSettings",
        "intone.bench.tune:bench_tune",
    ),
    "train": Verb(
        "our training against nanochat's, in turns: speed, launch, quality",
        "intone.bench.train_settings:BenchTrainSettings",
        "intone.bench.train:bench_train",
    ),
}


# a verb stands here when it works
VERBS = {
    "run": Verb(
        "text -> tokenizer -> base -> mid -> SFT -> evaluation",
        "RunSettings",
        "intone.pipeline.verb:run_pipeline",
        "intone.pipeline.forecast:forecast",
    ),
    "train": Verb("one stage: base, mid, sft or rl", "TrainSettings", "intone.pipeline.verb:run_train"),
    "chat": Verb(
        "talk to a run, or to a server", "ChatSettings", "intone.api:chat", "intone.tune.engine:forecast"
    ),
    "serve": Verb(
        "a run behind an HTTP address: OpenAI's API, metrics, a page to chat",
        "intone.serve.settings:ServeSettings",
        "intone.serve.verb:serve",
        "intone.tune.engine:forecast",
    ),
    "eval": Verb("bits per byte and starter skills of a run", "EvalSettings", "intone.api:evaluate",
                 "intone.tune.engine:forecast"),  # fmt: skip
    "bench": Verb(
        "measure whether B is faster: A-settings -- B-settings; or a suite",
        "intone.bench.settings:BenchSettings",
        "intone.bench.compare:bench_stage",
        suites=SUITES,
        has_other=True,
    ),
    "scan": Verb(
        "what is wrong or slow in a PyTorch code base, and a plan to fix it",
        "intone.optimise.scan.settings:ScanSettings",
        "intone.optimise.scan.verb:scan_verb",
    ),
    "tune": Verb(
        "settle every auto of a stage here, and show why",
        "TuneSettings",
        "intone.tuning:tune_verb",
        suites={
            "infer": Verb(
                "how many texts the engine runs at once here, in some ten seconds",
                "intone.tune.settings:TuneInferSettings",
                "intone.tuning:tune_infer",
                "intone.tune.engine:forecast",
            )
        },
    ),
    "optimise": Verb(
        "find what makes a stage of ours, or a program, slow; fix it; prove it",
        "intone.optimise.settings:OptimiseSettings",
        "intone.optimise.verb:optimise_verb",
        takes_command=True,
    ),
    "plan": Verb(
        "what a code base lacks; with a text, a plan for it and a tested change",
        "intone.optimise.planner.settings:PlanSettings",
        "intone.optimise.planner.verb:plan_verb",
    ),
    "tokenizer": Verb("train or inspect a tokenizer", "TokenizerSettings", "intone.corpus:tokenizer_verb"),
    "data": Verb("check data, or tokenise it ahead of time", "DataSettings", "intone.corpus:data_verb"),
    "import": Verb(
        "a checkpoint of nanochat or transformers becomes a run",
        "ImportSettings",
        "intone.exchange.importing:import_verb",
    ),
    "export": Verb(
        "a run as a folder for transformers, or as safetensors",
        "ExportSettings",
        "intone.exchange.exporting:export_verb",
    ),
    "report": Verb("a page to look at and to show: of a run, or of measurements", "ReportSettings",
                   "intone.report.write:report_verb"),  # fmt: skip
    "runs": Verb("what is on disk", "RunsSettings", "intone.runs:runs_verb"),
}


def static_answer(words: list[str]) -> str | None:
    """What `intone`, `intone --help` and `intone --version` print; None where a verb has work to do."""
    if not words or words[0] in ("-h", "--help", "help"):
        return help_text()
    return f"intone {intone.__version__}" if words[0] == "--version" else None


def help_text() -> str:
    """The verbs with one line each, and where to go on."""
    width = max(map(len, VERBS))
    lines = [
        "usage: intone VERB [flags]",
        "",
        "Trains, measures and talks to small language models, fitted to this machine.",
        "",
        *(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()),
        "",
        "intone VERB --help lists the flags of a verb; --json ends stdout with one line for machines.",
        "First steps: intone run, then intone chat.",
        "Exit codes: 0 done, 1 a check failed, 2 your input, 130 stopped.",
    ]
    return "\n".join(lines)
