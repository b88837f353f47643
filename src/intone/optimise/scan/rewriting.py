"""Writes declared changes into a file's text by its concrete syntax tree; imported only for patches (needs libcst)."""

import ast
from collections.abc import Sequence

import libcst as cst
from libcst.codemod import CodemodContext
from libcst.codemod.visitors import AddImportsVisitor
from libcst.metadata import MetadataWrapper, PositionProvider

from intone.optimise.scan.codemods import Fix


def rewrite(text: str, fixes: Sequence[Fix]) -> str:
    """The text with all changes of the fixes made. Asserts that each one found its place."""
    wrapper = MetadataWrapper(cst.parse_module(text))
    writer = _Writer(fixes)
    changed = wrapper.visit(writer)
    assert not writer.expressions and not writer.statements and not writer.decorators, "a change found no place"
    imports = sorted({name for fix in fixes for name in fix.imports})
    if imports:
        context = CodemodContext()
        for name in imports:
            AddImportsVisitor.add_needed_import(context, name)
        changed = AddImportsVisitor(context).transform_module(changed)
    return changed.code


class _Writer(cst.CSTTransformer):
    """Replaces nodes by their line and code: both trees know these, and a finding's line is exact."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, fixes: Sequence[Fix]) -> None:
        super().__init__()
        self.expressions = {
            (node.lineno, ast.unparse(node)): code for fix in fixes for node, code in fix.expressions.items()
        }
        self.statements = {node.lineno: lines for fix in fixes for node, lines in fix.statements.items()}
        self.decorators = {
            node.name: code
            for fix in fixes
            for node, code in fix.decorators.items()
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        self._lines = {
            node.name: node.lineno
            for fix in fixes
            for node in fix.decorators
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        self._source = cst.Module([])

    def on_leave(self, original: cst.CSTNode, updated: cst.CSTNode) -> cst.CSTNode | cst.FlattenSentinel:  # type: ignore[override]
        result = super().on_leave(original, updated)
        if not isinstance(original, cst.BaseExpression) or not isinstance(result, cst.BaseExpression):
            return result  # type: ignore[return-value]
        line = self.get_metadata(PositionProvider, original).start.line
        if not any(at == line for at, _ in self.expressions):
            return result
        code = _normal(self._source.code_for_node(original))
        new = self.expressions.pop((line, code), None)
        if new is None:
            return result
        made = cst.parse_expression(new)
        if getattr(original, "lpar", None) and not getattr(made, "lpar", None):
            made = made.with_changes(lpar=original.lpar, rpar=original.rpar)
        return made

    def leave_SimpleStatementLine(
        self, original: cst.SimpleStatementLine, updated: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel | cst.RemovalSentinel:
        line = self.get_metadata(PositionProvider, original).start.line
        lines = self.statements.pop(line, None)
        if lines is None:
            return updated
        if not lines:
            return cst.RemoveFromParent()
        made = [cst.ensure_type(cst.parse_statement(code), cst.SimpleStatementLine) for code in lines]
        made[0] = made[0].with_changes(leading_lines=updated.leading_lines)
        made[-1] = made[-1].with_changes(trailing_whitespace=updated.trailing_whitespace)
        return cst.FlattenSentinel(made)

    def leave_FunctionDef(self, original: cst.FunctionDef, updated: cst.FunctionDef) -> cst.FunctionDef:
        name = original.name.value
        if name not in self.decorators:
            return updated
        place = self.get_metadata(PositionProvider, original.name).start.line
        if place != self._lines[name]:
            return updated
        decorator = cst.Decorator(decorator=cst.parse_expression(self.decorators.pop(name)))
        if updated.decorators:
            return updated.with_changes(decorators=[*updated.decorators, decorator])
        return updated.with_changes(
            decorators=[decorator], leading_lines=updated.leading_lines, lines_after_decorators=[]
        )


def _normal(code: str) -> str:
    """Code as ast.unparse writes it; "" for what is no expression by itself."""
    try:
        return ast.unparse(ast.parse(code.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return ""
