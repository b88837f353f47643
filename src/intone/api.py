"""The Python interface, `intone.load`, `intone.train` and `intone.compare`, and the verbs that are a thin coat over it.

torch is imported inside the functions that compute: `intone tune --facts` and a mistyped run answer without it.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intone import jobs
from intone.config import TrainJob
from intone.data.chat import Message, parse_messages
from intone.errors import EXIT_CHECK_FAILED, EXIT_DONE, EXIT_STOPPED, UserError
from intone.evals.asking import evaluation_config
from intone.hardware import known_facts
from intone.model.native.build import build_to_generate
from intone.paths import home, read_json, write_json
from intone.records import Answer, read_choices, settings_layer
from intone.resolving import Layer, Resolved, resolve
from intone.runs import Place, find_stage
from intone.settings import ChatSettings, EvalSettings, TrainSettings

if TYPE_CHECKING:
    from intone.data.tokenizer import Tokenizer
    from intone.engine.engine import Engine
    from intone.prove.verdict import Comparison
    from intone.serve.partners import Partner

Device = Literal["auto", "cpu", "cuda", "mps"]


class LoadedModel:
    """A trained model with its tokenizer and a running engine. Close it after use: the engine owns a thread."""

    def __init__(self, engine: "Engine", tokenizer: "Tokenizer", place: Place) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.place = place

    def chat(
        self, messages: str | Sequence[Message] | Sequence[Mapping[str, Any]], *, max_tokens: int | None = 256,
        temperature: float = 0.0, top_k: int | None = None, top_p: float = 1.0, seed: int | None = None,
        tools: bool | str | Sequence[str] = True, min_tokens: int = 0,
    ) -> str:  # fmt: skip
        """The readable answer to a question, or to a list of {"role", "content"} that ends with the user's turn.

        tools: True the calculator, False none, or names: "calculator", "python". min_tokens: tokens of text before the
        answer may end; with 0 it is what the model says, also where that is nothing.
        Raises UserError for a conversation that is none or does not fit, RuntimeError where the model fails.
        """
        from intone.engine.requests import Request

        request = Request(
            conversation(messages), max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            seed=seed, tools=tools, min_tokens=min_tokens,
        )  # fmt: skip
        completion = self.engine.generate([request])[0][0]
        if completion.reason == "error":
            raise RuntimeError(completion.error)
        return completion.text

    def close(self) -> None:
        """Ends the engine; harmless when called twice."""
        self.engine.close()

    def __enter__(self) -> "LoadedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    run: str = "latest", *, device: Device = "auto", dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto",
) -> LoadedModel:  # fmt: skip
    """The model of a run, ready to generate. run: NAME, NAME/STAGE, a path, or latest.

    dtype auto: the one it was trained in. weights: how a CPU keeps the matrices; auto: in dtype, or in 8 bits where
    `intone eval --weights int8` showed that this costs next to nothing (engine.settings says so).
    Raises UserError where there is no such run, stage or save.
    """
    find_stage(run)  # a mistyped run is said before torch is imported
    build_to_generate(device)  # on one core while the other imports torch

    from intone.serve.loading import open_run

    opened = open_run(run, device=device, dtype=dtype, weights=weights)
    return LoadedModel(opened.engine, opened.tokenizer, opened.place)


def train(stage: str, **settings: Any) -> Answer:
    """`intone train STAGE` from Python: settings as the flags of that verb -> its result, run and path.

    Raises UserError for an unknown setting (with the nearest name) and wherever training needs the person.
    """
    from intone.pipeline.verb import run_train

    layers = [Layer("flag", "intone.train", {"stage": stage, **settings})]
    if isinstance(settings.get("settings"), str):
        layers.insert(0, settings_layer(TrainSettings, Path(settings["settings"]).expanduser()))
    asked, origins = resolve(TrainSettings, layers)
    return run_train(asked, origins)


def compare(a: Mapping[str, Any], b: Mapping[str, Any], **about: Any) -> "Comparison":
    """Whether training with the settings b is faster than with a, measured here; see bench.compare.compare.

    intone.compare({"compile": "off"}, {"compile": "on"}, stage="base", quick=True).verdict
    """
    from intone.bench import compare as sides

    return sides.compare(a, b, **about)


def conversation(messages: str | Sequence[Message] | Sequence[Mapping[str, Any]]) -> list[Message]:
    """A question, messages, or their JSON form -> messages. Raises UserError."""
    if isinstance(messages, str):
        return [Message("user", messages)]
    if all(isinstance(message, Message) for message in messages):
        return list(messages)  # type: ignore[arg-type]
    return parse_messages([dict(message) if isinstance(message, Mapping) else message for message in messages])


def read_job(folder: Path) -> TrainJob:
    """The recipe of a training job. Raises UserError where the folder is no such job."""
    return TrainJob.from_json(read_json(folder / "config.json"))


def chat(settings: ChatSettings, origins: Mapping[str, Resolved]) -> Answer:
    """`intone chat`: one answer for --prompt or piped text, else a conversation in the terminal."""
    from intone.serve.terminal import piped_prompt

    if settings.url is None:
        if settings.api_key is not None:
            raise UserError("--api-key is for a server", fix="name it: --url http://127.0.0.1:8000")
        find_stage(settings.from_run)  # a mistyped run is said before anything is loaded
    prompt = settings.prompt if settings.prompt is not None else piped_prompt(sys.stdin)
    if prompt is None and settings.json:
        raise UserError("--json needs a question", fix='add --prompt "..." or pipe a text in')
    if settings.url is not None:
        return chat_with_server(settings, prompt, is_named=origins["from_run"].origin == "flag")

    from intone.engine.collector import spare_loaded
    from intone.serve.partners import EnginePartner

    with load(settings.from_run, device=settings.device, weights=settings.weights) as model:
        spare_loaded()
        place = model.place
        run, path = place.run.name if place.run else None, str(place.folder)
        name = f"{run}/{place.stage}" if run else path
        answer = converse(EnginePartner(model.engine, model.tokenizer, name), prompt, settings)
    return replace(answer, run=run, path=path)


def chat_with_server(settings: ChatSettings, prompt: str | None, *, is_named: bool) -> Answer:
    """The same with a server; needs no torch. is_named: --from says which model."""
    from intone.serve.remote import ServerPartner

    assert settings.url is not None, "the caller looked"
    key = settings.api_key or os.environ.get("INTONE_API_KEY")
    return converse(
        ServerPartner(settings.url, api_key=key, model=settings.from_run if is_named else None), prompt, settings
    )


def converse(partner: "Partner", prompt: str | None, settings: ChatSettings) -> Answer:
    """One answer where there is a prompt, else a conversation until the person leaves."""
    from intone.serve.terminal import answer_once, chat_loop, line_editing

    if prompt is not None:
        out = None if settings.json else sys.stdout
        return Answer({"prompt": prompt, "answer": answer_once(partner, prompt, settings=settings, out=out)})
    with line_editing():
        code = chat_loop(partner, settings=settings)
    outcomes = {EXIT_DONE: "done", EXIT_STOPPED: "stopped"}
    return Answer({}, outcome=outcomes.get(code, "error"), exit=code)


def evaluate(settings: EvalSettings, _origins: Mapping[str, Resolved]) -> Answer:
    """`intone eval RUN`: the evaluation job in a worker of its own -> bits per byte and skills as tables."""
    from intone.pipeline.result import skills_table

    place = find_stage(settings.run)
    config = evaluation_asked(place, settings)
    choices = read_choices(place.folder)
    with jobs.trial_folder(home() / "trials") as folder:
        write_json(folder / "config.json", config)
        outcome = jobs.start(folder, choices.environment).wait()
        result = read_json(folder / "eval.json") if outcome.outcome == "done" else {}
    if outcome.outcome == "stopped":
        raise KeyboardInterrupt
    run, path = place.run.name if place.run else None, str(place.folder)
    if outcome.outcome != "done":
        failure = UserError(f"the evaluation ended as {outcome.outcome}: {outcome.message}", fix=outcome.fix)
        return Answer(
            {},
            str(failure),
            run=run,
            path=path,
            outcome=outcome.outcome,
            exit=EXIT_CHECK_FAILED,
            error=failure.as_json(),
        )
    result.pop("format", None)
    lines = [f"run {run or path}, stage {place.stage}"]
    if bpb := result.get("bpb"):
        lines.append(
            f"{bpb['value']:.4f} bits per byte [{bpb['low']:.4f}, {bpb['high']:.4f}], {bpb['num_bytes']:,} bytes"
        )
    if lost := result.get("eight_bits"):
        lines.append(
            f"8-bit weights cost {lost['value']:+.5f} bits per byte [{lost['low']:+.5f}, {lost['high']:+.5f}], "
            f"{lost['num_bytes']:,} bytes"
        )
    if starter := result.get("starter"):
        lines.append(skills_table(starter))
    return Answer(result, "\n".join(lines), run=run, path=path)


def evaluation_asked(place: Place, settings: EvalSettings) -> dict[str, Any]:
    """config.json of the evaluation job: the run's validation text unless --val is given, the engine as measured."""
    from intone.data.tokenizer import Tokenizer
    from intone.prepare import ensure_val, fetched, find_source
    from intone.tune.engine import kept_for

    val = None
    if settings.val:
        source = fetched(find_source("documents", settings.val, settings.val), 0)
        folder = Path(read_job(place.folder).tokenizer)
        val = str(ensure_val(source, folder, Tokenizer.load(folder), name="base").folder)
    config = evaluation_config(
        place, tasks=settings.tasks, weights=settings.weights, val=val, num_items=settings.num_items
    )
    device: str = settings.device
    if device == "auto":
        device = "cpu" if settings.weights == "int8" else known_facts().device or "cpu"
    engine = {name: choice.value for name, choice in kept_for(place, settings).items()}
    return config | {"device": device, "engine": engine}
