"""The command line: flags to settings with their origins, and one readable end for every command.

The only module that imports tyro, and only once a verb's flags must be read.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import intone
from intone import settings as settings_module
from intone.errors import (
    EXIT_BAD_INPUT,
    EXIT_CHECK_FAILED,
    EXIT_DONE,
    EXIT_STOPPED,
    DiskFull,
    UserError,
    nearest,
    unknown_name,
)
from intone.fields import Checked, flag_of, help_of, kind, metavar, shown, words_of
from intone.log import say
from intone.paths import home, write_atomic
from intone.records import Answer, json_line, settings_layer
from intone.resolving import Layer, Resolved, inherited, named_fields, preset_rows, resolve, show_table
from intone.verbs import VERBS, Verb, static_answer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line -> exit code: 0 done, 1 a check or we failed, 2 the person's input, 130 stopped.

    With --json the last line on stdout is the result object, however the command ends.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    static = static_answer(words)
    if static is not None:
        print(static)
        return EXIT_DONE
    ours, theirs = split_argv(words)
    verb, as_json = ours[0], "--json" in ours
    try:
        answer = run_verb(verb, ours[1:], theirs)
        if answer is None:
            return EXIT_DONE
        if answer.text and not as_json and not answer.is_said:
            print(answer.text)
    except UserError as error:
        answer = _failed("disk_full" if isinstance(error, DiskFull) else "bad_input", EXIT_BAD_INPUT, error)
        say(f"intone {verb}: {error}")
    except KeyboardInterrupt:
        answer = _failed(
            "stopped", EXIT_STOPPED, UserError("stopped", fix="the same command goes on from the last save")
        )
        say(f"\nintone {verb}: stopped")
    except BrokenPipeError:
        # the reader of stdout went away (`| head`): nobody is left to tell, and Python must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_STOPPED
    except Exception as error:
        answer = _crashed(verb, words, error)
    if as_json and not answer.is_said:
        print(json_line(verb, answer), flush=True)
    return answer.exit


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """(what is for us, the foreign command after the first `--` or None)."""
    words = list(argv)
    if "--" not in words:
        return words, None
    cut = words.index("--")
    return words[:cut], words[cut + 1 :]


def run_verb(verb: str, args: list[str], theirs: list[str] | None) -> Answer | None:
    """Reads the flags and calls the verb; None where only help was printed. Raises UserError."""
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    entry = VERBS[verb]
    cls = settings_class(entry)
    if entry.suites and args and not args[0].startswith("-"):
        stages = [word for field in named_fields(cls).values() if _is_first(field) for word in words_of(field.type)]
        if args[0] in entry.suites:
            verb, entry, args = f"{verb} {args[0]}", entry.suites[args[0]], args[1:]
            cls = settings_class(entry)
        elif args[0] not in stages:
            raise unknown_name(f"stage or suite of intone {verb}", args[0], [*stages, *entry.suites])
    if theirs is not None and not entry.has_other and not entry.takes_command:
        raise UserError(f"intone {verb} takes no command after --", value=" ".join(theirs), fix="leave out the --")
    given = parse_flags(verb, entry, args)
    if given is None:
        return None
    settings, origins = resolve(cls, layers(cls, given))
    if settings.show:
        return _show(entry, settings, origins)
    more: tuple[Any, ...] = (other_settings(verb, entry, given, theirs),) if entry.has_other else ()
    if entry.takes_command:
        more = (theirs,)
    answer = _call(entry.target, settings, origins, *more)
    assert isinstance(answer, Answer), f"{entry.target} returned no Answer"
    return answer


def settings_class(entry: Verb) -> type[Checked]:
    """The settings class of a verb."""
    module, _, name = entry.settings.rpartition(":")
    found: type[Checked] = getattr(importlib.import_module(module) if module else settings_module, name)
    return found


def other_settings(
    verb: str, entry: Verb, given: Mapping[str, Any], theirs: list[str] | None
) -> tuple[Checked, Mapping[str, Resolved]] | None:
    """The settings behind `--`, laid over those before it; None where there is no `--`. Raises UserError.

    What is about the comparison itself (aside) can only stand before it.
    """
    if theirs is None:
        return None
    cls = settings_class(entry)
    changed = parse_flags(verb, entry, theirs)
    if changed is None:
        raise UserError("--help stands behind the --", value="--help", fix=f"see intone {verb} --help")
    fields = named_fields(cls)
    for name in changed:
        if fields[name].metadata.get("aside") or fields[name].metadata.get("positional"):
            flag = flag_of(fields[name])
            raise UserError(f"{flag} holds for both sides", value=flag, fix=f"put {flag} before the --")
    return resolve(cls, layers(cls, {**given, **changed}))


def _is_first(entry: dataclasses.Field[Any]) -> bool:
    return bool(entry.metadata.get("positional"))


def layers(cls: type[Checked], given: Mapping[str, Any]) -> list[Layer]:
    """What overlays the defaults: settings of `--from RUN` where this verb inherits them, then the flags."""
    fields = named_fields(cls)
    stronger = [Layer("flag", flag_of(fields[name]), {name: value}) for name, value in given.items()]
    if isinstance(given.get("settings"), str):
        stronger.insert(0, settings_layer(cls, Path(given["settings"]).expanduser()))
    inherits = any(entry.metadata.get("inherit") for entry in fields.values())
    if not inherits or not isinstance(given.get("from_run"), str):
        return stronger
    from intone.runs import find_run

    run = find_run(given["from_run"])
    return [Layer("from", f"run {run.name}", inherited(cls, run.settings)), *stronger]


# what people write where a verb has --from
FOR_A_RUN = ("--run", "--model", "--name", "--checkpoint", "--load")


def parse_flags(verb: str, entry: Verb, args: list[str]) -> dict[str, Any] | None:
    """The settings that the words name, and only those; None where help was asked and printed. verb: for messages.

    Raises UserError for an unknown flag (with the nearest), a flag given twice, or a value of the wrong kind.
    """
    import tyro

    cls = settings_class(entry)
    fields = named_fields(cls)
    words, named = _known_flags(verb, fields, args)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: Any = tyro.cli(
                _parser_class(cls), prog=f"intone {verb}", description=description(entry), args=words
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return None
        raise _explained(verb, cls, words, said.getvalue()) from None
    values = dataclasses.asdict(parsed)
    for name, flag in named.items():
        if values[name] == ():
            raise UserError(f"{flag} needs at least one value", value=flag, fix=f"see intone {verb} --help")
    for name, field in fields.items():
        if values[name] == () and field.default is dataclasses.MISSING:
            raise _missing(verb, cls, field)
    return {
        name: values[name] for name, field in fields.items() if name in named or _is_given_word(field, values[name])
    }


def description(entry: Verb) -> str:
    """What `--help` says of a verb before its flags: what it does, and its suites."""
    width = max(map(len, entry.suites), default=0)
    lines = [f"  {name:<{width}}  {suite.summary}" for name, suite in entry.suites.items()]
    return "\n".join([entry.summary, *(["", "suites:", *lines] if lines else [])])


def _known_flags(
    verb: str, fields: Mapping[str, dataclasses.Field[Any]], args: list[str]
) -> tuple[list[str], dict[str, str]]:
    """The words made ready for tyro, and {setting: flag as written}. Raises UserError for unknown or repeated flags."""
    spellings = {flag_of(entry): name for name, entry in fields.items()}
    spellings |= {f"--no-{flag[2:]}": name for flag, name in spellings.items() if fields[name].default is True}
    words: list[str] = []
    named: dict[str, str] = {}
    current: str | None = None
    for word in args:
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if not word.startswith("--"):
            words.append(_plain(word, fields[current]) if current else word)
            continue
        if flag == "--help":
            words.append(flag)
            continue
        if flag not in spellings:
            guess = "--from" if flag in FOR_A_RUN and "--from" in spellings else nearest(flag, spellings)
            fix = f"did you mean {guess}?" if guess else f"intone {verb} --help lists the flags"
            raise UserError(f"unknown flag {flag} of intone {verb}", value=flag, fix=fix)
        current = spellings[flag]
        if current in named and fields[current].type is not bool:
            raise UserError(f"{flag} is given twice", value=flag, fix="give it once; several values follow one flag")
        named[current] = flag
        words.append(f"{flag}={_plain(value, fields[current])}" if equals else flag)
    return words, named


def _plain(word: str, entry: dataclasses.Field[Any]) -> str:
    """32,768 -> 32768 and none -> None, where the setting is a number."""
    if "number" not in kind(entry.type):
        return word
    if word.lower() == "none":
        return "None"
    return word.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", word) else word


def _is_given_word(entry: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a setting without a flag was given: it then differs from its default."""
    return bool(entry.metadata.get("positional")) and value != entry.default


def _parser_class(cls: type[Checked]) -> type:
    """The settings class as tyro reads it: with help from the comments, flags as we spell them, and no checks."""
    import tyro

    helps = help_of(cls)
    members: list[tuple[str, Any, Any]] = []
    for name, entry in named_fields(cls).items():
        positional = bool(entry.metadata.get("positional"))
        argument = tyro.conf.arg(
            name=None if positional else flag_of(entry)[2:],
            help=helps[name],
            metavar=name.upper() if positional else metavar(entry.type),
            help_behavior_hint=_default_hint(entry),
        )
        marks: list[Any] = [argument, *([tyro.conf.Positional] if positional else [])]
        if entry.type is bool and entry.default is False:
            marks.append(tyro.conf.FlagCreatePairsOff)
        default = (
            dataclasses.field() if entry.default is dataclasses.MISSING else dataclasses.field(default=entry.default)
        )
        members.append((name, Annotated[(entry.type, *marks)], default))
    return dataclasses.make_dataclass(cls.__name__, members, kw_only=True)


def _default_hint(entry: dataclasses.Field[Any]) -> str:
    """What `--help` says about leaving a setting out."""
    if entry.default is dataclasses.MISSING:
        return "(required)"
    return "" if entry.default in (None, (), False) else f"(default: {shown(entry.default)})"


def _explained(verb: str, cls: type[Checked], words: list[str], said: str) -> UserError:
    """tyro's boxed complaint as one of our errors."""
    fields = named_fields(cls)
    text = " ".join(re.sub(r"[─│╭╮╰╯]", " ", said).split())
    spellings = {flag_of(entry): entry for entry in fields.values()}
    by_word = {entry.name: entry for entry in fields.values() if entry.metadata.get("positional")}
    found = re.search(r"(?:parsing |argument ')(--[\w-]+|\w+)", text)
    entry = spellings.get(found[1]) or by_word.get(found[1].lower()) if found else None
    if text.startswith("Required options"):
        required = [entry for entry in fields.values() if entry.default is dataclasses.MISSING]
        return _missing(verb, cls, next((entry for entry in required if f" {flag_of(entry)} " in text), required[0]))
    if text.startswith("Unrecognized options"):
        extra = text.partition("Unrecognized options: ")[2].split()[0].rstrip(",")
        fix = f"see intone {verb} --help"
        if "--from" in spellings and not by_word and "--from" not in words:
            fix = f"a run is named with --from: intone {verb} --from {extra}"
        return UserError(f"unexpected {extra!r}", value=extra, fix=fix)
    if entry is None:
        return UserError(text, fix=f"see intone {verb} --help")
    flag, allowed = flag_of(entry), kind(entry.type).removeprefix("a list, each ")
    if text.startswith("Missing argument"):
        return UserError(f"{flag} needs a value: {allowed}", value=flag, fix=f"see intone {verb} --help")
    value = _value_of(flag, words, text)
    guess = nearest(value, [word.strip(",") for word in allowed.split()]) if value else None
    fix = f"did you mean {guess!r}?" if guess else f"see intone {verb} --help"
    return UserError(f"{flag} {value!r} is not {allowed}", value=value, fix=fix)


def _missing(verb: str, cls: type[Checked], entry: dataclasses.Field[Any]) -> UserError:
    name, what = flag_of(entry), kind(entry.type)
    meant = f": {help_of(cls)[entry.name]}" if what == "a text" else ""
    return UserError(f"{name} is missing after intone {verb}", fix=f"{name} is {what}{meant}")


def _value_of(flag: str, words: list[str], text: str) -> str:
    """The value that was refused: what the complaint quotes first, or, where that is broken, what follows the flag."""
    values = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    quoted = re.search(r"""'([^']*)'|"([^"]*)\"""", text)
    value = (quoted[1] or quoted[2] or "") if quoted else ""
    return values[words.index(flag) + 1] if value not in values and flag in words[:-1] else value


def _show(entry: Verb, settings: Checked, origins: Mapping[str, Resolved]) -> Answer:
    """`--show`: the forecast where the verb has one, every value with its origin and reason, and a run's choices."""
    rows = {name: value for name, value in origins.items() if name not in ("show", "json")}
    if "preset" in rows:
        rows |= preset_rows(rows["preset"].value)
    values = {name: dataclasses.asdict(value) for name, value in rows.items()}
    result: dict[str, Any] = {"settings": values}
    likely: Mapping[str, Any] = {}
    lines = ""
    if entry.forecast is not None:
        lines, likely = _call(entry.forecast, settings, origins)
        lines, result["forecast"] = f"{lines}\n\n", likely
    text = f"{lines}{show_table(rows, likely)}"
    named = next((word for name in ("from_run", "like", "run") if (word := getattr(settings, name, None))), None)
    if named is not None:
        lines, result["choices"] = choices_of(named)
        text = f"{text}\n\n{lines}"
    return Answer(result, text)


def choices_of(reference: str) -> tuple[str, dict[str, Any]]:
    """What was settled for the run that a person names, in words and as JSON; the words say where that is nothing."""
    from intone.log import table
    from intone.records import read_choices
    from intone.runs import find_stage

    try:
        settled = read_choices(find_stage(reference).folder).settings
    except UserError as error:
        return f"nothing is known of what was settled for {reference}: {error.message}", {}
    rows = [[name, str(entry.value), entry.origin, entry.reason] for name, entry in settled.items()]
    text = f"settled for {reference}\n{table(rows, header=['setting', 'value', 'origin', 'reason'], left=4)}"
    return text, {name: dataclasses.asdict(entry) for name, entry in settled.items()}


def _call(target: str, *arguments: Any) -> Any:
    module, _, function = target.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(*arguments)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "intone":
            raise
        raise UserError(
            f"the package {error.name} is not installed",
            value=error.name,
            fix="install intone with what it needs: .venv/bin/pip install .",
        ) from error


def _failed(outcome: str, code: int, error: UserError) -> Answer:
    return Answer({}, outcome=outcome, exit=code, error=error.as_json())


def _without_keys(words: Sequence[str]) -> list[str]:
    """The command line with *** where a key stands: people send these files to each other."""
    hidden = ["***" if before == "--api-key" else word for before, word in zip(["", *words], words, strict=False)]
    return ["--api-key=***" if word.startswith("--api-key=") else word for word in hidden]


def _crashed(verb: str, words: list[str], error: Exception) -> Answer:
    """Our own mistake: one line for the person, the traceback in a file under INTONE_HOME."""
    line = f"intone {intone.__version__}: {' '.join(_without_keys(words))}"
    report = f"{line}\n\n{''.join(traceback.format_exception(error))}"
    path = home() / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    message = f"{type(error).__name__}: {error}"
    try:
        write_atomic(path, report)
        fix = f"this is a fault in intone; the details are in {path}"
    except (OSError, UserError):
        say(report)
        fix = "this is a fault in intone; the details are above, since no file could be written"
    failure = UserError(message, value=type(error).__name__, fix=fix)
    say(f"intone {verb}: {failure}")
    return _failed("error", EXIT_CHECK_FAILED, failure)
