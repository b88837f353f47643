"""The order of the layers, low to high: the law of imports, and the order of docs/MAP.md."""

# modules or packages directly under intone; a line may import itself and the lines before it
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__init__",),
    ("errors", "paths", "log", "config", "verbs"),
    ("fields", "mixture", "resolving", "settings", "records", "runs", "recipe"),
    ("report",),
    ("system", "child", "blocks", "pulse", "rates", "hardware", "dist", "team", "peak"),
    ("model", "data"),
    ("prepare",),
    ("engine",),
    ("evals",),
    ("exchange",),
    ("train",),
    ("worker", "jobs", "launch", "supervisor"),
    ("prove",),
    ("tune",),
    ("planning", "planning_rl", "ground"),
    ("serve",),
    ("optimise",),
    ("bench",),
    ("pipeline", "tuning"),
    ("api", "corpus"),
    ("cli",),
    ("__main__",),
)
# on one line, and yet strangers to each other
STRANGERS = {("model", "data"), ("data", "model")}
# `intone.load` and `intone.train` reach up, at their first use only
LAZY_DOORS = {("__init__", "api"), ("train", "api")}
