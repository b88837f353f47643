"""nanochat's side of the comparison: which checkout it is, its variables, and its fastest way."""

import sys

import pytest
from tests.bench.fake_nanochat import checkout_of, write_checkout

from intone.bench import train_nanochat
from intone.bench.train_nanochat import FILES, Way, best_way, describe, find_checkout, variables
from intone.config import model_config
from intone.errors import UserError
from intone.hardware import Facts

FACTS = Facts(fingerprint="ab" * 8, cores_physical=2, libc="glibc 2.36", device="cpu", torch_version="2.13.0")


def test_another_nanochat_than_the_baseline_is_refused_and_named_where_it_is_allowed(tmp_path):
    with pytest.raises(UserError, match="nanochat/gpt.py is missing") as caught:
        find_checkout(str(tmp_path), None)
    assert "checkout 92d63d4" in caught.value.fix
    write_checkout(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if not (tmp_path / name).exists():
            (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="is not nanochat at 92d63d4: nanochat/gpt.py differs"):
        find_checkout(str(tmp_path), None)
    found = find_checkout(str(tmp_path), "/usr/bin/python3", any_revision=True)
    assert (found.path, found.python) == (tmp_path, "/usr/bin/python3")
    assert found.revision.startswith("with files ")
    (tmp_path / "nanochat" / "gpt.py").write_text("# another")
    assert find_checkout(str(tmp_path), None, any_revision=True).revision != found.revision


def test_nanochats_number_format_never_depends_on_the_persons_variables(home):
    assert variables(Way(8, 2), FACTS, dtype="fp32")["NANOCHAT_DTYPE"] == "float32"
    assert variables(Way(8, 2), FACTS, dtype="bf16")["NANOCHAT_DTYPE"] == "bfloat16"
    plain = variables(Way(8, 3), FACTS, dtype="fp32")
    assert plain["OMP_NUM_THREADS"] == "3"
    assert not any(name.startswith("MALLOC") for name in plain)
    with_ours = variables(Way(8, 3, our_variables=True), FACTS, dtype="fp32")
    assert with_ours["MALLOC_MMAP_MAX_"] == "0"
    assert {name: with_ours[name] for name in plain} == plain


def test_nanochat_gets_its_fastest_way_and_keeps_it(home, monkeypatch, tmp_path):
    """Rates of a machine where 16 rows are best, our variables help by half a per cent, and one thread by two."""
    tried = []

    class Child:
        name = "nanochat"

        def __init__(self, _checkout, _model, _rows, way, *_, **__):
            tried.append(way)
            self.rate = {8: 100, 16: 120, 32: 110}[way.micro_rows] * (1.005 if way.our_variables else 1)
            self.rate *= 1.02 if way.threads == 1 else 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait_ready(self):
            pass

        def block(self, steps):
            return {"tokens": self.rate, "seconds": 1.0}

    monkeypatch.setattr(train_nanochat, "NanochatChild", Child)
    model = model_config("modern", depth=2, vocab_size=300, context=64)
    place = checkout_of(tmp_path, sys.executable)

    def best(batch_tokens, sizes=(8, 16, 32), **more):
        return best_way(place, model, tmp_path, FACTS, dtype="bf16", batch_tokens=batch_tokens, sizes=sizes, **more)

    assert best(64 * 64) == Way(16, 1)
    assert tried == [Way(32, 2), Way(16, 2), Way(8, 2), Way(16, 2, our_variables=True), Way(16, 1)]
    assert best(64 * 64) == Way(16, 1)
    assert len(tried) == 5
    assert best(64 * 64, fresh=True) == Way(16, 1)
    assert len(tried) == 10
    assert best(8 * 64).micro_rows == 8  # 16 and 32 do not divide a step of 8 rows
    with pytest.raises(UserError, match="no micro-batch of 8, 16 rows divides the 12 rows of a step"):
        best(12 * 64, sizes=(8, 16))
    assert describe(Way(16, 1, our_variables=True)) == "16 rows, 1 threads, our variables"
