"""`intone tune --facts`: what is known about this machine, and how."""

from typing import Any

from intone.hardware import Facts, compile_obstacle, environment, load_facts
from intone.log import table


def facts_text(facts: Facts) -> str:
    """The table fact | value | source, what workers get in their environment, and what is missing with its fix."""
    lines = [table(facts.rows(), header=["fact", "value", "source"]), "", "environment of workers"]
    lines += [f"  {name}={item.value}  ({item.reason})" for name, item in environment(facts).items()]
    obstacle = compile_obstacle(facts)
    if obstacle:
        lines += ["", obstacle]
    lines += ["", f"kept in {facts.folder}"]
    return "\n".join(lines)


def facts_json(facts: Facts) -> dict[str, Any]:
    """The `result` of `intone tune --facts --json`."""
    return {
        "fingerprint": facts.fingerprint,
        "facts": facts.as_json(),
        "environment": {
            name: {"value": item.value, "reason": item.reason} for name, item in environment(facts).items()
        },
        "compile_obstacle": compile_obstacle(facts),
    }


def print_facts(json: bool = False, *, fresh: bool = False) -> dict[str, Any]:
    """Measures what is not known yet, prints the table unless json, and returns the result for `--json`.

    fresh measures everything again.
    """
    facts = load_facts(again=fresh)
    if not json:
        print(facts_text(facts))
    return facts_json(facts)
