"""What a round kept, as a file of settings that `intone train` and `intone run` take with --settings"""

from typing import Any

from intone.optimise.stages.round import StageRound

ON_OFF = {True: "on", False: "off"}


def preset_of(round_: StageRound) -> dict[str, Any]:
    """{format, settings, beside}: what was kept of the training as flags, and what no flag can say."""
    state = round_.state("train") if "train" in round_.target.parts else {}
    settings: dict[str, Any] = {}
    for name, value in state.get("segment", {}).items():
        if name == "compiled":
            settings["compile"] = ON_OFF[value]
        elif name != "attention":  # it follows from the other two
            settings[name] = value
    beside = {place: values for place, values in state.items() if place != "segment"}
    if "generate" in round_.target.parts:
        beside |= {f"generation {place}": values for place, values in round_.state("generate").items()}
    return {"format": 1, "settings": settings, "beside": beside}


def preset_words(round_: StageRound, preset: dict[str, Any]) -> str:
    """How to have what was kept."""
    lines = []
    if preset["settings"]:
        lines.append(f"train with it: intone train STAGE --settings {round_.folder / 'preset.json'}")
    for place, values in preset["beside"].items():
        lines += [f"kept beside it, {place}: {name} {value}" for name, value in values.items()]
    return "\n".join(lines)
