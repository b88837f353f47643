"""A rule on how much of a row is padding."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace

from intone.optimise.scan.calls import functions_of
from intone.optimise.scan.expressions import is_false, keyword, last_name, text_of
from intone.optimise.scan.filling import LONGEST, filled_up, is_for_training
from intone.optimise.scan.finding import Confidence
from intone.optimise.scan.neighbours import is_elsewhere
from intone.optimise.scan.project import Project, owner_of
from intone.optimise.scan.purpose import is_evaluation
from intone.optimise.scan.rulebook import Place, rule
from intone.optimise.scan.rules.data_order import held_out
from intone.optimise.scan.source import Module, Scope, target_name
from intone.optimise.scan.values import is_module_class


@rule(
    "S23",
    "rows padded where they could be packed",
    kind="padding",
    severity="medium",
    why="Padding goes through every layer and is then left out of the loss; with texts of mixed length half "
    "of the work or more "
    "is for nothing, and each new width is a new shape for compiled code.",
    fix="Pack several texts into one row of fixed length, with a document mask and positions that start "
    "anew; weight the loss "
    "by supervised tokens.",
    source="optimiser.md D16; nanochat-facts.md 2.6",
)
def padded_rows(module: Module, project: Project) -> Iterator[Place]:
    """A collate of training rows with labels that fills up to the longest row, or to a fixed length."""
    for place in filled_rows(module, project):
        if LONGEST in place.message and module.mentions(BY_LENGTH):
            continue  # of about the same length
        if (other := _packs_instead(project)) is not None:  # whoever wants it has it: the default is for short runs
            yield replace(place, confidence="low", evidence=(*place.evidence, f"a setting packs instead: {other}"))
        else:
            yield place


def _packs_instead(project: Project) -> str | None:
    """Where a code base chooses by a setting between rows that are filled up and packed ones, or None.

    collate_fn=pack if packed else partial(pad, ...)
    """
    key = ("packs instead", None)
    if key not in project.remembered:
        project.remembered[key] = next(
            (
                f"{module.path}:{node.lineno}" for module in project.modules for node in module.nodes
                if isinstance(node, ast.IfExp) and re.search(r"\bpack(ed|ing)?\b", text_of(node.test))
                and re.search(r"collat|pad", f"{text_of(node.body)} {text_of(node.orelse)}")
            ),
            None,
        )  # fmt: skip
    found: str | None = project.remembered[key]
    return found


def filled_rows(module: Module, project: Project) -> list[Place]:
    """Where training rows are filled up in a file, also where they are of about the same length."""
    key = ("padded", module.path)
    if key not in project.remembered:  # the rule on changing shapes asks too
        project.remembered[key] = list(_padded_rows(module, project))
    found: list[Place] = project.remembered[key]
    return found


def _padded_rows(module: Module, project: Project) -> Iterator[Place]:
    for scope in module.scopes:
        if _packs(scope):
            continue
        padding = filled_up(scope, project)
        if padding is None:
            continue
        node, how = padding
        if (owner := owner_of(scope)) is not None and is_module_class(owner):
            continue  # what a model fills up inside is no row of a batch
        if LEFT.search(text_of(node)):
            continue  # prompts side by side at their end: they are to be continued, which needs the filling
        labels = scope if is_for_training(node) else _labels_near(scope, project)
        if labels is not None and _packs(labels) or _is_packed_before(scope, project) or _loader_packs(scope, project):
            continue
        if labels is not None and labels is not scope and SERVES.search(scope.name):
            continue  # what was generated, handed to a training that makes its labels from it
        if is_evaluation(scope, project) and not _is_shuffled(scope, project):
            continue  # runs now and then, and what it measures stays comparable
        if labels is None and not _feeds_training(scope, project, how):
            continue
        told = "the batch carries labels: it is for training" if labels is not None else "its program trains"
        if labels is not None and labels is not scope:
            told += f" ({labels.module.path}: `{labels.simple_name}`)"
        home = next((other.scope_of[node] for other in project.modules if node in other.scope_of), scope)
        confidence: Confidence = "high" if labels is not None else "medium"
        yield Place(node, f"rows are filled up {how}, each with one text", (told,), confidence, scope=home)


LEFT = re.compile(r"padding_side\s*=\s*['\"]left")
SERVES = re.compile(r"(^|[._])(rollout|generate|serve|respond)(?=$|[._])")
ASKS = re.compile(
    r"(^|[._])(eval\w*|valid\w*|val|test\w*|infer\w*|generat\w*|predict\w*|complet\w*|serve\w*|chat$|decod\w*|score\w*|"
    r"rank\w*|search\w*|respond|answer\w*|rollout\w*|forward|concat\w*|gather\w*|nested\w*)(?=$|[._])",
    re.I,
)
TOKENS = re.compile(r"cross_entropy|CrossEntropyLoss|ignore_index|nll_loss|log_softmax\([^#]*\.gather\(")
# a file that trains, or that writes rows down for a training
LEARNS = re.compile(
    TOKENS.pattern + r"|['\"]labels['\"]|nn\.\w*Loss\b|\.backward\(|def training_step|"
    r"np\.savez?\w*\(|\.to_parquet\(|save_to_disk\(|np\.memmap\([^#]*['\"]w\+"
)
# rows of about the same length together: little is filled up
BY_LENGTH = re.compile(
    r"group_by_length\s*=\s*True|LengthGroup|by_length|key=(lambda \w+: )?len|key=\w*[lL]en\w*\.__getitem__|"
    r"argsort\([^)\n]*[lL]en|class Bucket\w*(Sampler|Batch)|bucket_boundar"
)


def _feeds_training(scope: Scope, project: Project, how: str) -> bool:
    """Whether rows without labels beside them are those of a training: of a file that trains, and not to be asked."""
    module, sites = scope.module, project.callers(scope)[:6]
    if any(last_name(call.func) == "generate" for one in [scope, *(s.scope for s in sites)] for call in one.calls):
        return False
    if ASKS.search(scope.name) or sites and all(ASKS.search(site.scope.name) for site in sites):
        return False
    if SPEAKS.search(text_of(scope.node) + how) and _is_shuffled(scope, project):
        return True
    if how != LONGEST and SPEAKS.search(text_of(scope.node)) and _fills_rows(scope, project):
        return True
    users = {site.scope.module for site in sites}
    # frames of sound are often as long as the longest
    learns = (
        TOKENS if how == LONGEST and not re.search(r"pad_(token_)?id|token|input_ids", text_of(scope.node)) else LEARNS
    )
    return any(one.mentions(learns) for one in {module, *users})


# words of code that deals with texts, not with pictures or sound
SPEAKS = re.compile(r"tok|ids\b|encod|vocab|text|src|tgt|sent|pad_id|PAD\b|int64|\blong\b", re.I)


def _is_shuffled(scope: Scope, project: Project) -> bool:
    """Whether a function joins the rows of a loader that draws them in some order, as only a training's does.

    DataLoader(rows, batch_sampler=..., collate_fn=join), where join is this function or calls it.
    """
    near = [scope, *(site.scope for site in project.callers(scope)[:6])]
    if scope.owner is not None and scope.simple_name == "__call__":
        near += [one for one in project.class_scopes(scope.owner) if one is not scope]
    for site in project.sites.get("DataLoader", []):
        collate = keyword(site.call, "collate_fn")
        if collate is None or ASKS.search(site.scope.name) or held_out(site.call, site.scope):
            continue
        drawn = any(
            (value := keyword(site.call, name)) is not None and not is_false(value)
            for name in ("shuffle", "sampler", "batch_sampler")
        )
        if drawn and any(one in near for one in functions_of(collate, site.scope, project)):
            return True
    return False


def _fills_rows(scope: Scope, project: Project) -> bool:
    """Whether a function makes the rows of a torch data set, itself or for what keeps them: class Rows(Dataset)."""
    module = scope.module
    if is_elsewhere(module) or not module.mentions(DATASET):
        return False
    near = [scope, *(site.scope for site in project.callers(scope)[:6])]
    return any(
        one.owner is not None and re.search(r"Dataset\b", " ".join(text_of(base) for base in one.owner.bases))
        and not ASKS.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", one.owner.name))
        for one in near
    )  # fmt: skip


DATASET = re.compile(r"^class \w+\([\w.]*Dataset(\[\w+\])?\):", re.M)


# calls by which several texts are laid into one row
LAYS = re.compile(r"(^|[._])(pack\w*|\w+_pack(er|ed)?|\w*Packer|\w*(first|best)_?fit\w*)(?=$|[._])", re.I)
NO_LAYING = re.compile(r"pack_padded|unpack|struct|msgpack|packing=False|pack_hook|package", re.I)


def _is_packed_before(scope: Scope, project: Project) -> bool:
    """Whether the rows that are filled up were packed before: who calls this, or this itself, calls what packs."""
    if scope.node is scope.module.tree:
        return False
    near = [scope, *(site.scope for site in project.callers(scope)[:6])]
    return any(
        LAYS.search(target_name(call.func) or "") is not None and not NO_LAYING.search(text_of(call))
        for one in near for call in one.calls
    )  # fmt: skip


def _loader_packs(scope: Scope, project: Project) -> bool:
    """Whether a loader joins rows by this function that its data set packs: DataLoader(Packed(x), collate_fn=...)."""
    near = [scope, *(site.scope for site in project.callers(scope)[:6])]
    if scope.owner is not None:
        classes = [scope.owner, *(child for _, child in project.children.get(scope.owner.name, []))]
        near += [method for one in classes for method in project.class_scopes(one)]
    for site in project.sites.get("DataLoader", []):
        collate = keyword(site.call, "collate_fn")
        rows = site.call.args[0] if site.call.args else keyword(site.call, "dataset")
        if collate is None or rows is None:
            continue
        if not any(one in near for one in functions_of(collate, site.scope, project)):
            continue
        made = [origin.node for origin in project.origins(rows, site.scope, depth=4)]
        names = {last_name(one.func) or "" for one in made if isinstance(one, ast.Call)}
        kinds = [place[1] for name in names for place in project.classes.get(name, [])]
        if any(LAYS.search(method.simple_name) for kind in kinds for method in project.class_scopes(kind)):
            return True
    return False


def _labels_near(scope: Scope, project: Project) -> Scope | None:
    """The function that makes labels for what is padded: itself, its class, what it calls, or what calls it."""
    near = [scope]
    if scope.owner is not None:
        near += project.class_scopes(scope.owner)
    near += [function for call in scope.calls for function in project.callees(call, scope)[:2]]
    if scope.node is not scope.module.tree:
        sites = project.callers(scope)[:6]
        near += [site.scope for site in sites]
        near += [site.scope for up in sites for site in project.callers(up.scope)[:4] if up.scope.outer is not None]
    if scope.node is scope.module.tree:  # a tokenizer that is set up once
        near = scope.module.scopes
    return next((one for one in near if (one.node is not one.module.tree or one is scope) and _makes_labels(one)), None)


def _makes_labels(scope: Scope) -> bool:
    """Whether a function makes labels in which padding is left out (-1, -100), as only training does."""
    text_names = {node.id for node in scope.of(ast.Name)}
    words = {part.value for part in scope.of(ast.Constant) if isinstance(part.value, str)}
    words = {word for word in words if len(word) < 40}
    labelled = any(re.search(r"label|target|loss_mask", name) for name in text_names | words)
    return (
        _fills_ignored(scope)
        or labelled
        and (_has_ignored(scope) or any(re.search(r"label|loss_mask", word) for word in words))
    )


TRAINS = re.compile(r"ignore_index|cross_entropy|backward\(")


def _fills_ignored(scope: Scope) -> bool:
    """A row that begins full of -100, or in a file with a loss of -1, as only labels do, whatever their name."""
    trains = scope.module.mentions(TRAINS)
    numbers = (1, 100) if trains else (100,)
    for node in scope.of(ast.Call, ast.BinOp):
        if isinstance(node, ast.Call) and last_name(node.func) in (
            "full", "new_full", "full_like", "fill_", "masked_fill", "masked_fill_", "pad_sequence", "pad",
            "constant_pad_nd", "where",
        ):  # fmt: skip
            values = [*node.args[1:], *(word.value for word in node.keywords)]
            values += node.args[:1] if last_name(node.func) == "fill_" else []
            if any(_is_ignored(value, numbers) for value in values):
                return True
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            lists = [side for side in (node.left, node.right) if isinstance(side, ast.List) and len(side.elts) == 1]
            if any(_is_ignored(side.elts[0], (100,)) for side in lists):
                return True
    return False


def _is_ignored(node: ast.expr, numbers: tuple[int, ...]) -> bool:
    """-1, -100, or a name that says ignore."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return node.operand.value in numbers
    return bool(re.search(r"ignore", last_name(node) or "", re.I))


def _has_ignored(scope: Scope) -> bool:
    for node in scope.of(ast.UnaryOp, ast.Name, ast.Attribute):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            above = scope.module.parents.get(node)
            if node.operand.value in (1, 100) and not isinstance(above, (ast.Subscript, ast.Slice, ast.Tuple)):
                return True
        if isinstance(node, ast.Name) and re.search(r"ignore_?(index|id|label)|IGNORE", node.id):
            return True
        if isinstance(node, ast.Attribute) and re.search(r"ignore_?(index|id|label)|IGNORE", node.attr):
            return True
    return False


PACKED = re.compile(r"cu_seqlens|doc(ument)?_(ids|mask)|packed|seq_idx")


def _packs(scope: Scope) -> bool:
    """Whether a function already lays several texts into one row."""
    for node in scope.of(ast.Call, ast.Name):
        if (
            isinstance(node, ast.Call)
            and last_name(node.func) in ("extend", "pack")
            and len(scope.module.loops_around(node)) >= 2
        ):
            inner = scope.module.loops_around(node)[0]
            if isinstance(inner, ast.While):
                return True
        if isinstance(node, ast.Name) and PACKED.search(node.id):
            return True
    return False
