"""Texts that get longer in a loop: what goes into a model is followed back to what grows."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from intone.optimise.scan.expressions import code_of, last_name, names_in
from intone.optimise.scan.folds import is_folded
from intone.optimise.scan.project import Project, Site
from intone.optimise.scan.reach import Reached, reached
from intone.optimise.scan.source import Binding, FunctionNode, Scope, own_nodes, target_name, walk
from intone.optimise.scan.values import is_chosen, is_model_name

# what makes a tensor of tokens, or changes its form, and computes nothing
MAKES = (
    "tensor", "as_tensor", "array", "asarray", "LongTensor", "from_numpy", "stack", "encode", "unsqueeze", "view",
    "reshape", "to", "long", "clone", "detach", "contiguous", "list", "int",
)  # fmt: skip
JOINS = ("cat", "concat", "concatenate", "hstack", "append", "column_stack", "pad", "vstack")
FILLED = "writing into "
DEPTH = 9  # names, arguments and slices between a model's input and what grows


@dataclass(frozen=True)
class Growth:
    """name: the text that gets longer in a loop; how: by what, in words."""

    name: str
    how: str
    is_filled: bool = False  # the text has a fixed width, and a token is written into it
    is_cut: bool = False  # the whole text was computed, and only its newest position goes on


def grown_argument(item: Reached, loop: ast.AST, project: Project) -> Growth | None:
    """The text that a model call gets as a whole and that grows in the loop, or None."""
    call = item.node
    assert isinstance(call, ast.Call)
    turn = reached(loop, _scope_of(loop, item), project)
    finder = _Finder(loop, project, turn)
    first = [arg for arg in call.args[:3] if not is_model_name(target_name(arg) or "")]
    for arg in [*first, *(word.value for word in call.keywords)]:
        found = finder.grows(arg, item.scope, item.chain, DEPTH)
        if found:
            return found
    return None


def _scope_of(loop: ast.AST, item: Reached) -> Scope:
    return item.chain[0].scope if item.chain else item.scope


class _Finder:
    """Follows a value back inside one loop, also up the calls that lead from the loop to it."""

    def __init__(self, loop: ast.AST, project: Project, turn: Sequence[Reached]) -> None:
        self.loop, self.project, self.turn = loop, project, turn
        self.inside = set(map(id, own_nodes(loop)))

    def grows(self, node: ast.expr, scope: Scope, chain: tuple[Site, ...], depth: int) -> Growth | None:
        """Whether an expression holds a text that gets longer: through names, slices, tensor(), arguments."""
        if depth <= 0:
            return None
        if isinstance(node, ast.IfExp):
            return self.grows(node.body, scope, chain, depth) or self.grows(node.orelse, scope, chain, depth)
        if isinstance(node, ast.BoolOp):
            return next((f for part in node.values if (f := self.grows(part, scope, chain, depth - 1))), None)
        if isinstance(node, (ast.Starred, ast.NamedExpr, ast.Await)):
            return self.grows(node.value, scope, chain, depth)
        if isinstance(node, ast.Subscript):
            if self._ends_at_position(node, scope, chain):
                return Growth(code_of(node.value, 30), "a slice that ends one token later at every turn")
            if is_last_only(node.slice):
                return self._computed_whole(node.value, scope, chain, depth)
            return None if _is_piece(node.slice) else self.grows(node.value, scope, chain, depth)
        if isinstance(node, (ast.List, ast.Tuple)):
            return next((f for part in node.elts[:4] if (f := self.grows(part, scope, chain, depth - 1))), None)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return self.grows(node.generators[0].iter, scope, chain, depth - 1)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.grows(node.left, scope, chain, depth - 1) or self.grows(node.right, scope, chain, depth - 1)
        if isinstance(node, ast.Dict):
            return next((f for part in node.values[:4] if (f := self.grows(part, scope, chain, depth - 1))), None)
        if isinstance(node, ast.Call):
            return self._through_call(node, scope, chain, depth)
        name = target_name(node)
        return self._name_grows(name, scope, chain, depth) if name is not None else None

    def _computed_whole(self, node: ast.expr, scope: Scope, chain: tuple[Site, ...], depth: int) -> Growth | None:
        """h[:, -1] where h is block(h) of a whole text: what is cut off afterwards was computed all the same."""
        values = [node]
        if (name := target_name(node)) is not None:
            values = [b.value for b in self._bindings(name, scope, chain) if b.how == "="]
        for value in values:
            if not isinstance(value, ast.Call) or not value.args or self.project.callees(value, scope):
                continue
            if (last_name(value.func) or "") in {*JOINS, *MAKES}:
                continue
            if is_chosen(value, scope, self.project, greedy=True):
                continue
            if found := self._through_call(value, scope, chain, depth - 1):
                return Growth(found.name, found.how, found.is_filled, is_cut=True)
        return None

    def _through_call(self, node: ast.Call, scope: Scope, chain: tuple[Site, ...], depth: int) -> Growth | None:
        """tensor(tokens), cat([prompt, new]), tokenizer.encode(text), crop(ids): of a function what it returns."""
        callees = self.project.callees(node, scope)[:2]
        for function in callees:
            for value in function.returns[:4]:
                if found := self.grows(value, function, (*chain, Site(node, scope)), depth - 1):
                    return found
        if callees:
            return None
        inside = list(node.args[:2])
        if isinstance(node.func, ast.Attribute) and last_name(node.func) not in (
            "tensor",
            "as_tensor",
            "array",
            *JOINS,
        ):
            inside.append(node.func.value)
        return next((f for part in inside if (f := self.grows(part, scope, chain, depth - 1))), None)

    def _name_grows(self, name: str, scope: Scope, chain: tuple[Site, ...], depth: int) -> Growth | None:
        here = self._bindings(name, scope, chain)
        own = not chain or "." in name or scope.node is self.loop
        for binding in here:
            # a local name of a function that the loop calls begins anew at every call, a list it is handed does not
            if (own or (binding.how in ("add", "op") and name in scope.parameters)) and (
                how := self._growth(name, binding, scope)
            ):
                return Growth(name, how.removeprefix(FILLED), how.startswith(FILLED))
        if "." in name and (found := self._attribute_grows(name, scope)):
            return found
        if found := self._beam_grows(name, here, scope):
            return found
        if "." in name and (owned := self._held_by_parameter(name, scope, chain, depth)):
            return owned
        for binding in here:
            if (
                binding.how in ("=", "part", "iter")
                and name not in names_in(binding.value)
                and (found := self.grows(binding.value, scope, chain, depth - 1))
            ):
                return found
        if name in scope.parameters and chain:
            value = self.project.argument(chain[-1], scope, name)
            if value is not None:
                return self.grows(value, chain[-1].scope, chain[:-1], depth - 1)
        if isinstance(self.loop, FunctionNode) and scope.node is self.loop and name in scope.parameters:
            return self._parameter_grows(name, scope)
        at = scope.outer  # of a function inside a function: a text of the function around
        if at is not None and not here and name in at.bindings and at.node is not at.module.tree:
            return self._name_grows(name, at, chain, depth - 1)
        return None

    def _beam_grows(self, name: str, here: Sequence[Binding], scope: Scope) -> Growth | None:
        """for score, text in beams: found.append((..., cat([text, token]))), and the beams are chosen anew.

        Also for beam in beams: found.append(Beam(beam.tokens + [token], ...)).
        """
        if "." in name:
            here = self._bindings(name.partition(".")[0], scope, ())
        lists = {target_name(binding.value) for binding in here if binding.how == "iter"} - {None}
        again = any(
            binding.how == "=" and id(binding.node) in self.inside
            for one in lists for binding in scope.bindings.get(one or "", [])
        )  # fmt: skip
        for item in self.turn if again else ():
            node = item.node
            joins = item.scope is scope and isinstance(node, (ast.Call, ast.BinOp, ast.List))
            if joins and (how := grown_by(node, name, scope, self.project)):  # type: ignore[arg-type]
                return Growth(name, f"{how} (line {item.line}), for every beam")
        return None

    def _held_by_parameter(self, name: str, scope: Scope, chain: tuple[Site, ...], depth: int) -> Growth | None:
        """beam.tokens in a helper that is handed the beam: what its caller has under its own name for it."""
        root, _, rest = name.partition(".")
        if root not in scope.parameters or root in ("self", "cls") or not chain:
            return None
        handed = self.project.argument(chain[-1], scope, root)
        base = target_name(handed) if handed is not None else None
        return self._name_grows(f"{base}.{rest}", chain[-1].scope, chain[:-1], depth - 1) if base else None

    def _bindings(self, name: str, scope: Scope, chain: tuple[Site, ...]) -> list[Binding]:
        """What is bound to a name at every turn: inside the loop, or anywhere in a function that the loop calls."""
        bindings = scope.bindings.get(name, [])
        if scope.node is self.loop:
            return bindings
        at_loop = any(id(binding.node) in self.inside for binding in bindings)
        if not chain or at_loop:
            return [binding for binding in bindings if id(binding.node) in self.inside]
        return bindings

    def _growth(self, name: str, binding: Binding, scope: Scope) -> str | None:
        """How a statement makes a text longer by a chosen token, or None."""
        value, node = binding.value, binding.node
        line = getattr(node, "lineno", 0)
        if binding.how in ("=", "part"):
            how = grown_by(value, name, scope, self.project, binding.index)
            return f"{how} (line {line})" if how else None
        if binding.how == "op" and self._is_new(value, scope):
            return f"+= in the loop (line {line})"
        if binding.how == "add" and isinstance(node, ast.Assign) and self._is_new(value, scope):
            return f"{FILLED}{code_of(node.targets[0], 30)} in the loop (line {line})"
        appends = binding.how == "add" and isinstance(node, ast.Call) and last_name(node.func) in ("append", "extend")
        if appends and self._is_new(value, scope):
            return f"{code_of(node, 30)} in the loop (line {line})"
        return None

    def _is_new(self, value: ast.expr, scope: Scope) -> bool:
        """A chosen token, or the text of one."""
        if isinstance(value, ast.Call) and last_name(value.func) == "where" and len(value.args) == 3:
            return any(is_chosen(arg, scope, self.project, greedy=True) for arg in value.args[1:])
        if isinstance(value, ast.Call) and last_name(value.func) in ("decode", "decode_single_token_bytes"):
            return any(is_chosen(arg, scope, self.project, greedy=True) for arg in value.args)
        return is_chosen(value, scope, self.project, greedy=True)

    def _attribute_grows(self, name: str, scope: Scope) -> Growth | None:
        """self.tokens or state.ids: lengthened anywhere in what the loop runs."""
        last = name.rpartition(".")[2]
        owner = self.project.owner_of(scope) if name.startswith("self.") else None
        for item in self.turn:
            other = item.scope
            if (
                owner is not None
                and name.startswith("self.")
                and self.project.owner_of(other) != owner
                and not any(n.endswith("." + last) and not n.startswith("self.") for n in other.bindings)
            ):
                continue
            for text, bindings in _attributes(other, last):
                for binding in bindings:
                    if binding.node is item.node and (how := self._growth(text, binding, other)):
                        return Growth(name, how)
        return None

    def _parameter_grows(self, name: str, scope: Scope) -> Growth | None:
        """f(ids) calls f(cat(ids, new)), or reduce(lambda ids, _: cat(ids, new), ...): the function is the loop."""
        for given in scope.returns if is_folded(scope, self.project) else ():
            if how := grown_by(given, name, scope, self.project):
                return Growth(name, f"{how}, handed to the next turn of reduce() (line {given.lineno})")
        for call in scope.calls:
            if scope in self.project.callees(call, scope):
                value = self.project.argument(Site(call, scope), scope, name)
                values = [value] if value is not None else []
                if isinstance(value, ast.Name):
                    values += [binding.value for binding in scope.bindings.get(value.id, [])]
                for one in values:
                    if how := grown_by(one, name, scope, self.project):
                        return Growth(
                            name, f"{how}, handed to the next call of {scope.simple_name} (line {call.lineno})"
                        )
        return None

    def _ends_at_position(self, node: ast.Subscript, scope: Scope, chain: tuple[Site, ...]) -> bool:
        """seq[:, :t] where t moves on in the loop and a chosen token is written into seq."""
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        ends = [p.upper for p in parts if isinstance(p, ast.Slice) and p.lower is None and p.upper is not None]
        base = target_name(node.value)
        if base is None or not ends:
            return False
        names = {name for end in ends for name in names_in(end)}
        if not names & self._moving(scope) and not self._moved_by_caller(names, scope, chain):
            return False
        last = base.rpartition(".")[2]
        for item in self.turn:
            if isinstance(item.node, ast.Assign) and isinstance(item.node.targets[0], ast.Subscript):
                target = target_name(item.node.targets[0].value) or ""
                same = target.rpartition(".")[2] == last or item.scope is not scope
                if same and self._is_new(item.node.value, item.scope):
                    return True
            if (
                isinstance(item.node, ast.Call)
                and last_name(item.node.func) in ("scatter_", "index_copy_", "index_fill_")
            ) and any(is_chosen(arg, item.scope, self.project, greedy=True) for arg in item.node.args):
                return True
        return False

    def _moving(self, scope: Scope) -> set[str]:
        """Names that move on at every turn: the loop's own variable, and what is counted up."""
        moving: set[str] = set()
        if isinstance(self.loop, (ast.For, ast.AsyncFor)):
            moving |= {part.id for part in walk(self.loop.target) if isinstance(part, ast.Name)}
        for item in self.turn:
            if isinstance(item.node, ast.AugAssign) and isinstance(item.node.op, ast.Add):
                moving |= names_in(item.node.target)
            if isinstance(item.node, ast.Assign) and isinstance(item.node.value, ast.BinOp):
                target = target_name(item.node.targets[0])
                if target and target in names_in(item.node.value):
                    moving.add(target)
        for name, bindings in scope.bindings.items():  # end = start + t
            if any(b.how == "=" and names_in(b.value) & moving for b in bindings):
                moving.add(name)
        return moving

    def _moved_by_caller(self, names: set[str], scope: Scope, chain: tuple[Site, ...]) -> bool:
        if not chain:
            return False
        for name in names & set(scope.parameters):
            value = self.project.argument(chain[-1], scope, name)
            if value is not None and names_in(value) & self._moving(chain[-1].scope):
                return True
        return False


def _attributes(scope: Scope, last: str) -> Iterator[tuple[str, list[Binding]]]:
    for text, bindings in scope.bindings.items():
        if "." in text and text.rpartition(".")[2] == last:
            yield text, bindings


def grown_by(
    value: ast.expr, name: str, scope: Scope, project: Project, index: int | None = None, depth: int = 3
) -> str | None:
    """How an expression is a text of this name made longer: cat, +, [*x, y], or a function that does so; or None."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add) and name in names_in(value):
        counted = any(isinstance(part, ast.Constant) and part.value == 1 for part in (value.left, value.right))
        grown = name in (target_name(value.left), target_name(value.right)) or _holds(value, name)
        return "+ in the loop" if grown and not counted else None  # position + 1 is no text
    if isinstance(value, (ast.List, ast.Tuple)) and index is None:
        stars = [part for part in value.elts if isinstance(part, ast.Starred) and name in names_in(part)]
        return "a longer list in the loop" if stars and len(value.elts) > 1 else None
    if isinstance(value, ast.JoinedStr):
        return "a longer text in the loop" if name in names_in(value) else None
    if isinstance(value, ast.IfExp):
        ways = [grown_by(part, name, scope, project, index, depth) for part in (value.body, value.orelse)]
        return next((way for way in ways if way), None)
    if isinstance(value, (ast.ListComp, ast.GeneratorExp)):
        return _grown_row_by_row(value, name, scope, project, depth)
    if not isinstance(value, ast.Call):
        return None
    last = last_name(value.func)
    if last in JOINS and name in names_in(value):
        return f"{last} in the loop"
    if last in ("stack", "tensor", "pad_sequence", "list") and value.args and depth:
        return grown_by(value.args[0], name, scope, project, index, depth - 1)
    if isinstance(value.func, ast.Attribute) and last in ("to", "contiguous", "clone", "long", "view", "detach"):
        return grown_by(value.func.value, name, scope, project, index, depth)
    return _grown_by_function(value, name, scope, project, index, depth) if depth else None


def _grown_row_by_row(
    value: ast.ListComp | ast.GeneratorExp, name: str, scope: Scope, project: Project, depth: int
) -> str | None:
    """[cat([row, token]) for row in ids], [row + [t] for row, t in zip(ids, new)]: each row of a text made longer."""
    head = value.generators[0]
    rows = sorted(names_in(head.target)) if name in names_in(head.iter) and depth else []
    return next((how for row in rows if (how := grown_by(value.elt, row, scope, project, None, depth - 1))), None)


def _holds(value: ast.BinOp, name: str) -> bool:
    return any(isinstance(part, ast.BinOp) and target_name(part.left) == name for part in walk(value))


def _grown_by_function(
    call: ast.Call, name: str, scope: Scope, project: Project, index: int | None, depth: int
) -> str | None:
    """ids = extend(ids, token): a function that hands back its parameter made longer."""
    for function in project.callees(call, scope)[:2]:
        for parameter in function.parameters:
            handed = project.argument(Site(call, scope), function, parameter)
            if handed is None or target_name(handed) != name:
                continue
            for value in function.returns[:4]:
                one = value.elts[index] if index is not None and isinstance(value, ast.Tuple) and index < len(
                    value.elts
                ) else value  # fmt: skip
                values = [one]
                if isinstance(one, ast.Name):
                    values += [binding.value for binding in function.bindings.get(one.id, []) if binding.how == "="]
                for part in values:
                    if how := grown_by(part, parameter, function, project, None, depth - 1):
                        return f"{how.removesuffix(' in the loop')} in `{function.simple_name}`"
                if isinstance(one, ast.Name) and one.id == parameter:
                    appended = [b for b in function.bindings.get(one.id, []) if b.how in ("add", "op")]
                    if appended:
                        return f"`{function.simple_name}`"
    return None


def _is_piece(index: ast.expr) -> bool:
    """[:, begin:end], [:, pos - 1 : pos]: what begins where the last piece ended."""
    for part in index.elts if isinstance(index, ast.Tuple) else [index]:
        lower = part.lower if isinstance(part, ast.Slice) else None
        if isinstance(lower, (ast.Name, ast.Attribute)):
            return True
        if isinstance(lower, ast.BinOp) and (isinstance(lower.op, ast.Add) or isinstance(lower.right, ast.Constant)):
            return True
    return False


def is_last_only(index: ast.expr) -> bool:
    """[:, -1:], [-1], [:, -1]: only the newest token."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    for part in parts:
        at = part.lower if isinstance(part, ast.Slice) and part.upper is None else part
        if isinstance(at, ast.UnaryOp) and isinstance(at.operand, ast.Constant) and at.operand.value == 1:
            return True
    return False
