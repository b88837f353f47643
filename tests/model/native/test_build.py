"""Building the CPU kernels: once, whole or not at all, and with a reason where it cannot be done."""

import ctypes
import subprocess
import threading

import pytest

from intone.errors import UserError
from intone.model.native import build


def needs(variant):
    """Skips where these kernels cannot be had, with the reason."""
    reason = build.obstacle(variant)
    return pytest.mark.skipif(reason is not None, reason=f"no kernels here: {reason}")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty home and no library loaded before."""
    monkeypatch.setenv("INTONE_HOME", str(tmp_path))
    monkeypatch.delenv("INTONE_NATIVE", raising=False)
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


def test_another_processor_or_system_is_a_reason_in_words(monkeypatch):
    monkeypatch.setattr(build.platform, "machine", lambda: "arm64")
    assert build.obstacle().startswith("our CPU kernels are written for Linux on x86-64, this is")
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(build, "processor", lambda: ("Old", {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"}))
    assert build.obstacle() == (
        "our CPU kernels in bf16 need avx512_bf16, avx512_vnni, which this processor does not have"
    )
    assert build.obstacle("avx2") == "our CPU kernels in fp32 need fma, f16c, which this processor does not have"
    monkeypatch.setattr(build, "processor", lambda: ("New", set(build.KINDS["avx512_bf16"].features)))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "need g++, which was not found" in build.obstacle()


def test_a_compiler_that_fails_is_a_clear_error_and_leaves_no_file(fresh, monkeypatch):
    monkeypatch.setattr(build, "obstacle", lambda variant: None)
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    if build.compiler() is None:
        pytest.skip("no g++ here")
    with pytest.raises(UserError) as caught:
        build.library()
    assert caught.value.message.startswith("our CPU kernels could not be built: ")
    assert caught.value.fix == "use --kernels torch"
    assert [path.name for path in fresh.rglob("*.so")] == []


def test_a_build_that_hangs_ends(fresh, monkeypatch):
    def hang(words, **options):
        if "--version" in words:
            return subprocess.CompletedProcess(words, 0, "g++ 1", "")
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(build, "obstacle", lambda variant: None)
    monkeypatch.setattr(build, "compiler", lambda: "g++")
    monkeypatch.setattr(build.subprocess, "run", hang)
    with pytest.raises(UserError, match="were not built within 300 s"):
        build.library()
    assert [path.name for path in fresh.rglob("*.so")] == []


@pytest.fixture(params=[pytest.param(variant, marks=needs(variant)) for variant in build.KINDS])
def variant(request):
    return request.param


def test_kernels_are_built_once_and_again_when_a_source_changes(fresh, monkeypatch, tmp_path_factory, variant):
    sources = tmp_path_factory.mktemp("sources")
    name = {"avx2": "one_avx2.cpp", "generate": "generate_one.cpp", "linear": "linear.cpp"}.get(variant, "one.cpp")
    source = sources / name
    source.write_text('extern "C" int intone_number() { return 1; }')
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build.library(variant).intone_number() == 1
    (path,) = fresh.rglob("kernels.so")
    stamp = path.stat().st_mtime_ns
    build.library.cache_clear()
    assert isinstance(build.library(variant), ctypes.CDLL)
    assert path.stat().st_mtime_ns == stamp
    source.write_text('extern "C" int intone_number() { return 2; }')
    build.library.cache_clear()
    assert build.library(variant).intone_number() == 2


def test_a_build_begun_ahead_is_what_the_library_waits_for(fresh, monkeypatch, tmp_path_factory):
    if build.obstacle("generate") is not None:
        pytest.skip(str(build.obstacle("generate")))
    sources = tmp_path_factory.mktemp("sources")
    (sources / "generate_one.cpp").write_text('extern "C" int intone_number() { return 3; }')
    monkeypatch.setattr(build, "SOURCES", sources)
    calls, run = [], build.build
    monkeypatch.setattr(build, "build", lambda *about: (calls.append(1), run(*about)))
    build.build_ahead("generate")
    assert build.library("generate").intone_number() == 3
    for thread in threading.enumerate():
        if thread.name == "build-generate":
            thread.join(60)
    assert calls == [1]  # by whichever of the two came first


def test_each_kind_is_built_from_its_own_files_and_no_file_is_left_over():
    names = {variant: {path.name for path in build.sources_of(variant)} for variant in build.KINDS}
    assert names["avx2"] >= {"blocks_avx2.cpp"}
    assert names["avx512_bf16"] >= {"blocks.cpp"}
    assert not names["avx2"] & names["avx512_bf16"] and not names["generate"] & (names["avx2"] | names["avx512_bf16"])
    assert (names["generate"], names["linear"]) == ({"generate.cpp"}, {"linear.cpp"})
    assert set().union(*names.values()) == {path.name for path in build.SOURCES.glob("*.cpp")}


def test_training_in_fp32_has_kernels_of_its_own_and_fp16_has_none():
    assert [build.variant_for(dtype) for dtype in ("bf16", "fp32", "fp16")] == ["avx512_bf16", "avx2", None]


def test_whose_products_training_runs_on_is_what_the_plan_says_and_else_a_matter_of_the_name(monkeypatch):
    def asked(name, word=None):
        monkeypatch.setattr(build, "processor", lambda: (name, set()))
        monkeypatch.delenv(build.PRODUCTS, raising=False)
        if word is not None:
            monkeypatch.setenv(build.PRODUCTS, word)
        return build.has_own_products.__wrapped__()

    assert asked("AMD EPYC") and not asked("Intel Xeon") and not asked(None)
    assert asked("Intel Xeon", "own") and not asked("AMD EPYC", "library")
    with pytest.raises(UserError, match="librari"):
        asked("AMD EPYC", "librari")
