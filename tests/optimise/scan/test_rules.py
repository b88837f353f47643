"""The rules as a whole: each has a planted fault and a near miss in one of the files beside this one."""

from tests.optimise.scan import (
    test_rules_accumulation,
    test_rules_data,
    test_rules_devices,
    test_rules_facts,
    test_rules_files,
    test_rules_generation,
    test_rules_modes,
    test_rules_randomness,
    test_rules_training,
)

from intone.optimise.scan.finding import CLASSES
from intone.optimise.scan.rulebook import RULES

TABLES = [
    test_rules_accumulation.CASES,
    test_rules_data.CASES,
    test_rules_devices.CASES,
    test_rules_facts.CASES,
    test_rules_files.CASES,
    test_rules_generation.CASES,
    test_rules_modes.CASES,
    test_rules_randomness.CASES,
    test_rules_training.CASES,
]


def test_every_rule_has_a_planted_fault_and_a_near_miss():
    assert {rule for table in TABLES for rule in table.with_fault} == set(RULES)
    assert {rule for table in TABLES for rule in table.without} == set(RULES)
    assert {rule.kind for rule, _ in RULES.values()} == set(CLASSES)


def test_every_rule_is_in_one_table():
    rules = [rule for table in TABLES for rule in {*table.with_fault, *table.without}]
    assert len(rules) == len(set(rules))
