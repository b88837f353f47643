"""Lists that a loop over data keeps: who holds them, whether they grow, are taken from, or are kept short."""

import ast
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from intone.optimise.scan.constants import known_values
from intone.optimise.scan.expressions import last_name, names_in, text_of
from intone.optimise.scan.project import Project
from intone.optimise.scan.reach import Loop, Reached, is_inside
from intone.optimise.scan.source import Binding, Scope, own_nodes, target_name, walk


@dataclass
class Work:
    """A loop over data with all that it runs."""

    loop: Loop
    scope: Scope
    items: Sequence[Reached]
    project: Project
    known: dict[str, set[tuple[Scope, str]]] = field(default_factory=dict)

    @cached_property
    def changes(self) -> list[Reached]:
        """What may change a list among all that runs."""
        kinds = (ast.Call, ast.Delete, ast.Assign, ast.AugAssign)
        return [item for item in self.items if type(item.node) in kinds]

    def holders(self, name: str, item: Reached) -> list[tuple[Scope, str]]:
        """(function, name) of a list along the calls that hand it on, inner ones first."""
        found, scope, chain = [(item.scope, name)], item.scope, item.chain
        while name in scope.parameters and chain:
            value = self.project.argument(chain[-1], scope, name)
            handed = target_name(value) if value is not None else None
            if handed is None:
                break
            name, scope, chain = handed, chain[-1].scope, chain[:-1]
            found.append((scope, name))
        return found

    def is_touched(self, holders: Sequence[tuple[Scope, str]], methods: Sequence[str]) -> bool:
        """Whether a list is changed by one of these methods anywhere in the loop."""
        for other in self.changes:
            node = other.node
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in methods
                and self._is_same(node.func.value, other, holders)
                and not _is_queue_take(node)
            ):
                return True
            if isinstance(node, ast.Delete) and "remove" in methods:
                for target in node.targets:
                    if isinstance(target, ast.Subscript) and self._is_same(target.value, other, holders):
                        return True
            if isinstance(node, ast.Assign) and "remove" in methods and isinstance(node.value, ast.ListComp):
                # waiting = [text for text in waiting if ...]: taken out by making the list anew
                walked = target_name(node.value.generators[0].iter)
                again = walked is not None and walked == target_name(node.targets[0]) and node.value.generators[0].ifs
                if again and self._is_same(node.targets[0], other, holders):
                    return True
            if isinstance(node, ast.Assign) and "remove" in methods and self._is_rest(node, other, holders):
                return True
            if (
                isinstance(node, ast.AugAssign)
                and "append" in methods
                and self._is_same(node.target, other, holders)
                and isinstance(node.value, (ast.List, ast.ListComp))
            ):
                return True
        return False

    def _is_rest(self, node: ast.Assign, other: Reached, holders: Sequence[tuple[Scope, str]]) -> bool:
        """todo = rest, in a while over todo: what did not fit becomes the list."""
        loops = other.scope.module.loops_around(node)
        if not isinstance(node.value, ast.Name) or not loops or not isinstance(loops[0], ast.While):
            return False
        target, rest = target_name(node.targets[0]), other.scope.bindings.get(node.value.id, [])
        filled = any(b.how == "add" and is_inside(b.node, loops[0], other.scope.module) for b in rest)
        return filled and target in names_in(loops[0].test) and self._is_same(node.targets[0], other, holders)

    def is_filled(self, holders: Sequence[tuple[Scope, str]]) -> bool:
        """Whether places of a list are counted down or up in the loop: free[r] -= n, used[r] += n."""
        for other in self.changes:
            node = other.node
            counted = isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript)
            if counted and self._is_same(node.target.value, other, holders):  # type: ignore[attr-defined]
                return True
        return False

    def _is_same(self, node: ast.expr, other: Reached, holders: Sequence[tuple[Scope, str]]) -> bool:
        name = target_name(node)
        if name is None:
            return False
        if name.startswith("self."):
            return any(held == name for _, held in holders)
        return any(pair in holders for pair in self.holders(name, other))

    def is_fresh(self, holders: Sequence[tuple[Scope, str]]) -> bool:
        """Whether a list is made inside the loop: another one at every turn."""
        scope, name = holders[-1]
        if name.startswith("self."):
            return False
        inside = scope is not self.scope
        for binding in scope.bindings.get(name, []):
            if self._goes_on(binding, name, scope):
                continue
            if binding.how in ("=", "iter", "part") and (inside or is_inside(binding.node, self.loop, scope.module)):
                return not remakes(binding.value, name)
            if binding.node is self.loop:
                return True
        return False

    def _goes_on(self, binding: Binding, name: str, scope: Scope) -> bool:
        """todo = rest, in a while over todo: the list of the turns before, made shorter."""
        loops = scope.module.loops_around(binding.node)
        again = bool(loops) and isinstance(loops[0], ast.While) and name in names_in(loops[0].test)
        return again and isinstance(binding.value, ast.Name)

    def is_of_texts(self, holders: Sequence[tuple[Scope, str]], item: Reached) -> bool:
        """Whether a list holds texts, rows or tokens: by its name, or by what is named around where one alone says
        nothing, as `todo` and `left` do."""
        words = {word for _, name in holders for word in words_of(name)}
        if any(TEXTS.match(word) for word in words):
            return True
        if not any(ANYTHING.match(word) for word in words):
            return False
        loops = item.scope.module.loops_around(item.node)
        around = {*names_in(loops[0] if loops else item.scope.node), item.scope.simple_name, self.scope.simple_name}
        return any(TEXTS.match(word) for name in around for word in words_of(name))

    def is_hashed(self, holders: Sequence[tuple[Scope, str]]) -> bool:
        """Whether a name holds a set or dict wherever it is made: to look for one entry there costs no search."""
        scope, name = holders[-1]
        owner = self.project.owner_of(scope) if name.startswith("self.") else None
        places = self.project.class_scopes(owner[1]) if owner is not None else [scope]
        made = [one.value for place in places for one in place.bindings.get(name, []) if one.how == "="]
        return bool(made) and all(_is_hashed(value) for value in made)

    def is_window(self, item: Reached, name: str) -> bool:
        """while len(recent) > lag: recent.pop(0), of a list to which single entries are added: it stays as short."""
        loops = item.scope.module.loops_around(item.node)
        test = loops[0].test if loops and isinstance(loops[0], ast.While) else None
        if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], (ast.Gt, ast.GtE)):
            return False
        bound = test.comparators[0]
        if text_of(test.left) != f"len({name})" or isinstance(bound, ast.Constant) and bound.value in (0, 1):
            return False
        grown = [binding.node for binding in item.scope.bindings.get(name, []) if binding.how in ("add", "op")]
        return bool(grown) and all(isinstance(node, ast.Call) and last_name(node.func) == "append" for node in grown)

    def is_after_error(self, item: Reached) -> bool:
        """Whether something runs only where an error was caught inside the loop."""
        for _, above, _ in item.up():
            if above is self.loop:
                return False
            if isinstance(above, ast.ExceptHandler):
                return True
        return False

    def is_of_slots(self, holders: Sequence[tuple[Scope, str]], item: Reached) -> bool:
        """Whether a list is kept below a number of slots, workers or the like: as few as run at the same time."""
        scopes = [scope for scope, _ in holders] + [site.scope for site in item.chain]
        if holders[-1][1].startswith("self.") and (owner := self.project.owner_of(holders[-1][0])) is not None:
            scopes += self.project.class_scopes(owner[1])
        names = {name for _, name in holders}
        bounds = (bound for scope in dict.fromkeys(scopes) for bound, _ in _bounds(scope, names, self.project))
        return any(SLOTS.search(text_of(bound)) for bound in bounds)

    def is_few(self, holders: Sequence[tuple[Scope, str]]) -> str | None:
        """The bound of a buffer that is kept short: `while len(buffer) < buffer_size`; None where it has none."""
        names = {name for _, name in holders}
        for scope in dict.fromkeys([*(scope for scope, _ in holders), self.scope]):
            for bound, at in _bounds(scope, names, self.project):
                return self._bound(bound, at)
        return None

    def _bound(self, node: ast.expr, scope: Scope) -> str | None:
        numbers = [k.value for k in known_values(node, scope, self.project) if isinstance(k.value, (int, float))]
        return f"{text_of(node)}={max(numbers)}" if numbers else text_of(node)


def _bounds(scope: Scope, names: Container[str], project: Project) -> Iterator[tuple[ast.expr, Scope]]:
    """What the length of a list is compared with in a function or around it, each with the function: not 0 and 1."""
    at: Scope | None = scope
    while at is not None:
        yield from ((bound, at) for name, bound in _compared_lengths(at, project) if name in names)
        at = at.outer


def _compared_lengths(scope: Scope, project: Project) -> list[tuple[str | None, ast.expr]]:
    """(list, bound) of every comparison of a length with more than 1 in a function, inner ones included."""
    key = ("compared lengths", scope)
    if key not in project.remembered:
        project.remembered[key] = [
            (target_name(node.left.args[0]), bound)
            for node in walk(scope.node)
            if isinstance(node, ast.Compare)
            and isinstance(node.ops[0], (ast.Lt, ast.LtE, ast.GtE, ast.Gt))
            and isinstance(node.left, ast.Call) and last_name(node.left.func) == "len" and node.left.args
            and not (isinstance(bound := node.comparators[0], ast.Constant) and bound.value in (0, 1))
        ]  # fmt: skip
    found: list[tuple[str | None, ast.expr]] = project.remembered[key]
    return found


# words of names that say that a list holds texts, rows or tokens
TEXTS = re.compile(
    r"pack|bins?$|chunk|buf|concat|docs?$|document|conv|rows?$|tok|batch|collat|loader|sampl|text|exampl|seqs?$|sequence|"
    r"bucket|stream|carry|piece|shard|ids$|flat|corpus|data|lines?$|blob|lens$|lengths?$|sizes?$|sent|dialog|string|crop"
)
# and those that say only that something waits there
ANYTHING = re.compile(
    r"fit|queue|pend|pool|wait|todo|left|remain|group|item|room|seen|open|used|placed|taken|order|all$|whole|joined|"
    r"outs?$|result|content|rest|tail|long|free$|space|gaps?$|fill"
)
SLOTS = re.compile(r"slot|concurren|running|worker|in_flight", re.I)


def words_of(name: str) -> list[str]:
    """self.waitingRows_2 -> ["self", "waiting", "rows"]"""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]


def _is_hashed(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return last_name(value.func) in ("set", "frozenset", "dict", "OrderedDict", "defaultdict", "Counter")
    return isinstance(value, (ast.Set, ast.SetComp, ast.Dict, ast.DictComp))


def _is_queue_take(call: ast.Call) -> bool:
    """pop() from the end moves nothing and needs no search."""
    return call.func.attr == "pop" and not call.args  # type: ignore[attr-defined]


def remakes(value: ast.expr, name: str) -> bool:
    """bins = sorted(bins): the same list made anew."""
    return name in names_in(value)


# --- searches for a place with room -----------------------------------------------------------------------------------

OVER_DATA = re.compile(
    r"doc|text|conv|example|file|shard|batch|data|line|row|sample|token|buffer|len\(|record|item|piece|path|url|glob|"
    r"source|corpus|corpora|split\(|chunk|stream|reader|article|page|story|sentence|paragraph|message",
    re.I,
)
ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
MASKS = ("nonzero", "flatnonzero", "where", "argwhere", "argmax", "argmin")


def is_fitting(node: ast.AST) -> bool:
    """for r in range(len(free)): if free[r] >= n: ...; break: the first place with room, whatever it is called."""
    if not isinstance(node, ast.For):
        return False
    targets = names_in(node.target)
    for part in own_nodes(node):
        if isinstance(part, ast.If) and names_in(part.test) & targets:
            sized = any(
                isinstance(test, ast.Compare) and isinstance(test.ops[0], ORDERS) or asks_room(test)
                for test in walk(part.test)
            )
            if sized and any(isinstance(inner, (ast.Break, ast.Return)) for inner in walk(part)):
                return True
    return False


def asks_room(node: ast.AST) -> bool:
    """row.fits(doc), row.has_room(n)"""
    name = last_name(node.func) if isinstance(node, ast.Call) else None
    return bool(re.search(r"fits?$|^can_(take|hold|add)|has_(room|space)|room_for", name or ""))


def masked_by(node: ast.Call) -> str | None:
    """np.flatnonzero(free >= n), (free >= n).nonzero(), argmin([r.used for r in rows]): what is walked."""
    if last_name(node.func) not in MASKS:
        return None
    if last_name(node.func) in ("argmax", "argmin"):  # free.argmax(), np.argmin(used)
        method = isinstance(node.func, ast.Attribute) and not node.args
        whole = node.func.value if method else node.args[0] if node.args else None  # type: ignore[attr-defined]
        if whole is not None and (name := target_name(whole)) is not None:
            return name
    for part in [*node.args[:1], *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]:
        for test in walk(part):
            if isinstance(test, ast.ListComp) and last_name(node.func) in ("argmax", "argmin"):
                return target_name(test.generators[0].iter)
            if isinstance(test, ast.Compare) and isinstance(test.ops[0], ORDERS):
                return target_name(test.left.value if isinstance(test.left, ast.Subscript) else test.left)
    return None


def comprehended(arg: ast.expr, scope: Scope, depth: int = 2) -> str | None:
    """The list that a generator, a comprehension, filter(), range(len(x)), enumerate(x), or a plain name goes over."""
    if isinstance(arg, (ast.GeneratorExp, ast.ListComp)):
        return list_name(arg.generators[0].iter)
    if isinstance(arg, ast.Call) and last_name(arg.func) in ("filter", "map") and len(arg.args) > 1:
        return list_name(arg.args[1])
    if isinstance(arg, ast.Name) and depth:  # fitting = (row for row in rows if row.room >= n)
        made = [b.value for b in scope.bindings.get(arg.id, []) if b.how == "="]
        lazy = isinstance(made[0], (ast.GeneratorExp, ast.ListComp)) if len(made) == 1 else False
        if lazy or len(made) == 1 and isinstance(made[0], ast.Call) and last_name(made[0].func) in ("filter", "map"):
            return comprehended(made[0], scope, depth - 1)
    return list_name(arg)


def list_name(node: ast.expr) -> str | None:
    """The list that is walked: buffer, enumerate(buffer), range(len(buffer)), list(buffer)."""
    if isinstance(node, ast.Call) and last_name(node.func) in (
        "enumerate",
        "list",
        "range",
        "len",
        "reversed",
        "zip",
        "sorted",
    ):
        last = (
            node.args[1]
            if last_name(node.func) == "range" and len(node.args) > 1
            else node.args[-1]
            if node.args
            else None
        )
        return list_name(last) if last is not None else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("values", "items"):
        return target_name(node.func.value)
    return target_name(node)
