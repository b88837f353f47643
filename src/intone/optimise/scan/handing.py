"""Who hands a value to the helper that uses it: a fault of the use is told where the value is made."""

import ast
import builtins
import re

from intone.optimise.scan.expressions import text_of
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.reach import Reached
from intone.optimise.scan.source import Scope, target_name, walk
from intone.optimise.scan.values import chooses_token

DEPTH = 3  # names on the way from a use to the parameter in a helper; guess


def handed_from(item: Reached, home: Scope, project: Project) -> Reached:
    """The call that hands a helper what it uses at a node, up to where it is made; the node itself where that is there.

    home: the function of the loop. A method of its class is no helper for anybody: what it does is told there.
    """
    while item.chain and _is_handed(item.node, item.scope) and not _is_of_class(item.scope, home):
        if _knows(item):
            break
        site = item.chain[-1]
        if (target_name(site.call.func) or "").partition(".")[0] in site.scope.parameters:
            break  # a callback: whoever wrote it hands it over to the loop
        if len(project.callees(site.call, site.scope)) > 1:
            break  # a hook, one of several: the loop does not know which
        item = Reached(site.call, site.scope, item.chain[:-1])
    return item


# what a helper calls its parameters that is made for values of a training, not for any number
TRAINED = re.compile(r"(^|_)(loss|losses|norm|grad|grads|logits|stats|metrics|outputs?|preds?)(_|$)", re.I)
HOOK = re.compile(r"^_?(on|after|before)_")


def _knows(item: Reached) -> bool:
    """Whether a helper knows what it is handed: healthy(loss, norm), or a hook on_step(step, stats)."""
    if item.chain[-1].scope.module is not item.scope.module and not HOOK.match(item.scope.simple_name):
        return False
    names = {part.id for part in walk(item.node) if isinstance(part, ast.Name)}
    handed = names & (set(item.scope.parameters) - {"self", "cls"})
    if HOOK.match(item.scope.simple_name) or any(TRAINED.search(name) for name in handed):
        return True
    # a method that keeps values of a training; a plain function reads whatever it is given
    if item.scope.owner is None:
        return False
    return any(_takes_tensor(part) for part in walk(item.node)) or bool(handed) and _is_kept(item)


def _is_kept(item: Reached) -> bool:
    """self.total += float(value): the object keeps what it reads, so it is made for values of a training."""
    for above in item.scope.module.up(item.node):
        if isinstance(above, ast.stmt):
            targets = above.targets if isinstance(above, ast.Assign) else [getattr(above, "target", None)]
            return any(target is not None and "self." in text_of(target) for target in targets)
    return False


def _takes_tensor(node: ast.AST) -> bool:
    """value.detach(), value.item(): whoever writes this knows that it is a tensor that may lie on the device."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OF_TENSORS


OF_TENSORS = ("detach", "cpu", "item", "tolist")


def _is_of_class(scope: Scope, home: Scope) -> bool:
    owner = owner_of(scope)
    return owner is not None and owner is owner_of(home)


def _is_handed(node: ast.AST, scope: Scope, depth: int = DEPTH) -> bool:
    """Whether all that a node uses comes in by parameters, and something does."""
    known = set(scope.module.imports) | set(scope.module.top.bindings) | set(dir(builtins)) | {"self", "cls"}
    found = False
    for part in walk(node):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in scope.parameters:
            return False  # what the helper computes itself: model(x)
        if isinstance(part, ast.Call) and (target_name(part.func) or "").startswith("self."):
            return False  # or its object does: self.loss(batch)
        if isinstance(part, ast.Call) and chooses_token(part, scope):
            return False  # int(multinomial(probs, 1)) waits whoever made the probabilities
        if not isinstance(part, ast.Name) or part.id in scope.module.imports:
            continue
        if part.id in scope.parameters and part.id not in ("self", "cls") or part.id in scope.rest:
            found = True
        elif bindings := scope.bindings.get(part.id, []):
            if depth == 0 or not all(_is_handed(binding.value, scope, depth - 1) for binding in bindings):
                return False
            found = True
        elif part.id not in known and part.id not in scope.module.top.bindings and not _is_function(part.id, scope):
            return False
    return found


def _is_function(name: str, scope: Scope) -> bool:
    """Whether a name is that of a function or class of the file."""
    return any(other.simple_name == name for other in scope.module.scopes) or any(
        isinstance(node, ast.ClassDef) and node.name == name for node in scope.module.tree.body
    )
