"""What seeds a random stream, and with what."""

import ast
import re
from collections.abc import Callable

from intone.optimise.scan.expressions import called, last_name, names_in, text_of
from intone.optimise.scan.source import Scope, target_name, walk

SEEDING = re.compile(r"(^|\.)(manual_seed|manual_seed_all|seed_everything|set_seed|seed_all)$")
SEEDERS = ("random.seed", "np.random.seed", "numpy.random.seed")
MAKERS = (
    "np.random.default_rng",
    "numpy.random.default_rng",
    "random.Random",
    "np.random.RandomState",
    "numpy.random.RandomState",
    "torch.Generator",
)
# functions that write a text, by their name
WRITES = re.compile(
    r"(^|_)(generate|sample|samples|complete|completion|chat|answer|respond|rollout|stream|caption|continue|infer|draw|"
    r"synthesi[sz]e|imagine|predict|reply|decode)($|_)"
)
# those of them that take their seed when they are made
SEEDED = tuple(name for name in MAKERS if name != "torch.Generator")


def seed_of(call: ast.Call, scope: Scope) -> ast.expr | None:
    """The seed of a call that seeds a stream; also of one that makes a stream with a fixed seed."""
    name = called(call, scope)
    if (SEEDING.search("." + name.rpartition(".")[2]) or name in SEEDERS) and call.args:
        return call.args[0]
    if name in SEEDED and (call.args or call.keywords):
        return call.args[0] if call.args else call.keywords[0].value
    if name.rpartition(".")[2] in ("set_rng_state", "setstate") and call.args and _is_saved(call.args[0], scope):
        return call.args[0]
    return None


def _is_saved(node: ast.expr, scope: Scope) -> bool:
    """A state that was taken from the stream before, and not one that was read with a checkpoint."""
    name = target_name(node)
    return name is not None and not re.search(r"ckpt|checkpoint|state_dict|\[", text_of(node))


def calls_something(seed: ast.expr) -> bool:
    return any(isinstance(part, ast.Call) and last_name(part.func) not in ("int", "hash") for part in walk(seed))


def chain_of(call: ast.expr, scope: Scope) -> str:
    """The names called along a chain: torch.Generator().manual_seed(0) -> "torch.Generator .manual_seed"."""
    names = [called(part, scope) for part in walk(call) if isinstance(part, ast.Call)]
    return " ".join(names)


def method_of(call: ast.Call) -> str:
    return last_name(call.func) or ""


def cut_by(scope: Scope, wanted: Callable[[str], bool]) -> bool:
    """Whether a function cuts something at a place that is made of a name: order[lo : lo + n] with lo = rank * n."""
    for node in scope.of(ast.Subscript):
        names = set(names_in(node.slice))
        names |= {n for name in names for b in scope.bindings.get(name, []) for n in names_in(b.value)}
        if any(wanted(name) for name in names):
            return True
    return False
