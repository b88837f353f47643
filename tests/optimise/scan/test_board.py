"""The issue board: what it says of a finding while code moves, changes, comes back, and is dismissed."""

import pytest

from intone.errors import UserError
from intone.optimise.scan.board import Board
from intone.optimise.scan.run import scan_texts
from intone.optimise.scan.sarif import to_sarif
from intone.optimise.scan.show import issue_text

FAULT = "import torch\ndef save(model, path):\n    torch.save(model.state_dict(), path)\n"


@pytest.fixture
def board(tmp_path, monkeypatch):
    monkeypatch.setenv("INTONE_HOME", str(tmp_path / "home"))
    return Board.load(tmp_path / "code")


def scan(text, only=()):
    return scan_texts({"a.py": text}, only=only)


def states(board):
    return [(issue.finding.rule, issue.state) for issue in board.issues.values()]


def test_a_finding_keeps_its_id_while_lines_move_and_layout_changes(board):
    board.sync(scan(FAULT))
    spread = "torch.save(\n        model.state_dict(), path\n    )"
    moved = "# a comment\n\n\n" + FAULT.replace("torch.save(model.state_dict(), path)", spread)
    change = board.sync(scan(moved))
    assert (change.new, change.fixed, states(board)) == (0, 0, [("S60", "open")])
    assert next(iter(board.issues.values())).finding.line == 6


def test_code_that_is_gone_is_fixed_and_code_that_is_back_is_open_again(board):
    board.sync(scan(FAULT))
    assert board.sync(scan("x = 1\n")).fixed == 1
    assert states(board) == [("S60", "fixed")]
    assert board.sync(scan(FAULT)).reopened == 1
    assert states(board) == [("S60", "open")]


def test_a_dismissal_stays_with_its_reason_while_the_code_is_there(board):
    board.sync(scan(FAULT))
    name = next(iter(board.issues))
    board.dismiss(name, "written to a RAM disk")
    board.sync(scan(FAULT))
    assert (board.issues[name].state, board.issues[name].reason) == ("dismissed", "written to a RAM disk")
    assert board.open_issues() == []
    board.reopen(name)
    assert [issue.finding.id for issue in board.open_issues()] == [name]


def test_a_dismissal_without_a_reason_is_refused(board):
    board.sync(scan(FAULT))
    with pytest.raises(UserError, match="needs a reason"):
        board.dismiss(next(iter(board.issues)), "  ")


def test_a_comment_in_the_code_dismisses_until_it_goes(board):
    line = "    torch.save(model.state_dict(), path)"
    board.sync(scan(FAULT.replace(line, line + "  # scan: ok[S60] one of many copies")))
    assert [(i.state, i.reason) for i in board.issues.values()] == [("dismissed", "in the code: one of many copies")]
    board.sync(scan(FAULT))
    assert states(board) == [("S60", "open")]


def test_a_comment_without_a_reason_dismisses_nothing_and_is_complained_about():
    result = scan(FAULT.replace("path)\n", "path)  # scan: ok[S60]\n"))
    assert [finding.rule for finding in result.findings] == ["S60"]
    assert "needs a reason" in result.complaints[0]


def test_a_comment_for_another_rule_dismisses_nothing():
    assert scan(FAULT.replace("path)\n", "path)  # scan: ok[S61] because\n")).suppressed == ()


def test_a_comment_alone_on_the_line_above_dismisses():
    assert scan(FAULT.replace("    torch.save", "    # scan: ok[S60, S61] because\n    torch.save")).findings == ()


def test_a_scan_with_some_rules_leaves_issues_of_others_alone(board):
    board.sync(scan(FAULT))
    board.sync(scan(FAULT, only=["S10"]), rules=["S10"])
    assert states(board) == [("S60", "open")]


def test_a_file_that_cannot_be_read_any_more_fixes_nothing(board):
    board.sync(scan(FAULT))
    board.sync(scan("def broken(:\n"))
    assert states(board) == [("S60", "open")]


def test_the_board_on_disk_is_the_board(board, tmp_path):
    board.sync(scan(FAULT))
    board.save()
    again = Board.load(tmp_path / "code")
    assert (again.issues, again.scans) == (board.issues, 1)


def test_a_helper_that_has_a_share_is_kept_on_the_board_and_told_to_code_hosts(board, tmp_path):
    code = (
        "def number(t):\n    return t.item()\ndef train(model, opt, loader):\n    for batch in loader:\n"
        "        loss = model(batch)\n        loss.backward()\n        opt.step()\n        print(number(loss))\n"
    )
    found = scan(code, only=["S30"])
    board.sync(found)
    board.save()
    issue = next(iter(Board.load(tmp_path / "code").issues.values()))
    assert (issue.finding.line, issue.finding.also) == (8, (("a.py", 2, "number"),))
    result = to_sarif(found, [(issue,)])["runs"][0]["results"][0]
    assert result["relatedLocations"][0]["physicalLocation"]["region"] == {"startLine": 2}
    assert "a.py:2 in number" in issue_text(issue)


def test_an_issue_is_found_by_the_beginning_of_its_id(board):
    board.sync(scan(FAULT))
    name = next(iter(board.issues))
    assert board.find(name[:6]).finding.id == name
    with pytest.raises(UserError, match="unknown issue"):
        board.find("S99-1")


def test_two_equal_lines_in_one_function_are_two_issues(board):
    twice = FAULT + "    torch.save(model.state_dict(), path)\n"
    assert board.sync(scan(twice)).new == 2
    assert board.sync(scan(FAULT)).fixed == 1
