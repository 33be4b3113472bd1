"""Target profiles: the shipped ones, inheritance, and what is said about bad ones."""

from pathlib import Path

import pytest

from hwprune import target
from hwprune.errors import TargetError
from hwprune.target_text import extending, to_annotated, to_toml

SHIPPED = sorted(path.stem for path in target.shipped_folder().glob("*.toml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with ./targets, and a user's config folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "targets").mkdir()
    return tmp_path / "targets"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_the_shipped_targets() -> None:
    cuda = ["a100", "cuda", "h100", "h200", "jetson-orin", "rtx3090", "rtx4090"]
    assert SHIPPED == sorted(["android-arm64", "arm", "graviton", "rk3399", "rpi3", "rpi4", "rpi5", "rpi5-fp16", "x86", "x86-avx512", "x86-zen4", *cuda])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_are_valid_and_name_a_source_for_every_figure(name: str, folder: Path) -> None:
    profile = target.load(name)
    assert profile.name == name
    assert profile.unsourced() == []


@pytest.mark.parametrize(
    ("name", "gflops"),
    [
        ("rpi3", 38.4),  # 2 x 4 lanes x 1 FMA a cycle x 1.2 GHz x 4 cores
        ("rpi4", 48.0),  # 2 x 4 x 1 x 1.5 x 4
        ("rk3399", 28.8),  # 2 x 4 x 1 x 1.8 x 2
        ("graviton", 160.0),  # 2 x 4 x 2 x 2.5 x 4
        ("rpi5", 153.6),  # 2 x 4 x 2 x 2.4 x 4
        ("rpi5-fp16", 307.2),  # 2 x 8 lanes x 2 x 2.4 x 4
        ("x86", 192.0),  # 2 x 8 x 2 x 3.0 x 2
        ("x86-avx512", 160.0 * 2),  # 2 x 16 x 2 x 2.5 x 2
        ("x86-zen4", 236.352),  # 2 x 16 x 1 x 3.693 x 2
        ("a100", 19_491.84),  # 2 x 64 multiply-adds x 1.41 GHz x 108 SMs
        ("rtx3090", 35_581.44),  # 2 x 128 x 1.695 x 82
        ("rtx4090", 82_575.36),  # 2 x 128 x 2.52 x 128
        ("jetson-orin", 5_324.8),  # 2 x 128 x 1.3 x 16
        ("h100", 66_908.16),  # 2 x 128 x 1.98 x 132
        ("h200", 66_908.16),
    ],
)
def test_peak_flops(name: str, gflops: float) -> None:
    assert target.load(name).peak_flops == pytest.approx(gflops * 1e9)


def test_arm_is_rpi4_and_says_so(folder: Path) -> None:
    arm, rpi4 = target.load("arm"), target.load("rpi4")
    assert arm.alias_of == "rpi4"
    assert arm.digest() == rpi4.digest()
    assert target.notices("arm", arm) == [f"target 'arm' stands for rpi4: {rpi4.description}"]
    assert target.notices("rpi4", rpi4) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_written_profile_reads_back_equal(name: str, folder: Path) -> None:
    profile = target.load(name)
    path = write(folder, name, to_toml(profile))
    assert target.load_file(path) == profile


def test_annotated_text_puts_sources_beside_figures() -> None:
    lines = to_annotated(target.load("rpi4")).splitlines()
    assert next(line for line in lines if line.startswith("frequency_mhz")).endswith("(later boards reach 1.8 GHz)")


def test_a_profile_that_extends_another(folder: Path) -> None:
    path = write(folder, "mine", extending("mine", target.load("rpi4")))
    mine = target.load_file(path)
    assert mine.name == "mine" and mine.core == target.load("rpi4").core
    path.write_text(path.read_text() + "\n[core]\nfrequency_mhz = 1800\n")
    assert target.load("mine").core.frequency_mhz == 1800


def test_an_overridden_figure_does_not_keep_its_source(folder: Path) -> None:
    path = write(folder, "mine", 'extends = "rpi4"\n[core]\nfrequency_mhz = 1800\n')
    mine = target.load_file(path)
    assert mine.unsourced() == ["core.frequency_mhz"]
    assert "memory.l2_bytes" in mine.source


def test_a_users_profile_shadows_a_shipped_one_with_a_notice(folder: Path) -> None:
    write(folder, "rpi4", 'extends = "rpi4"\n[core]\nfrequency_mhz = 1800\n')
    profile = target.load("rpi4")
    assert profile.core.frequency_mhz == 1800
    [notice] = target.notices("rpi4", profile)
    assert "shadows" in notice and str(target.shipped_folder()) in notice


def test_unknown_target_names_the_nearest(folder: Path) -> None:
    with pytest.raises(TargetError, match="unknown target 'rpi44'; did you mean rpi4 or"):
        target.load("rpi44")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("thread = 2\n", "unknown key `thread`, did you mean `threads`?"),
        ("[core]\nvector_bit = 64\n", "unknown key `core.vector_bit`, did you mean `vector_bits`?"),
        ("threads = 9\n", "`threads <= cores` must hold, but got (threads=9, cores=4)"),
        ("cores = 0\n", "`cores` = 0: input should be greater than 0"),
        ('cores = "four"\n', "`cores` = 'four': input should be a valid integer"),
        ("[core]\nvector_bits = 100\n", "`core.vector_bits` must be a multiple of 32, but got 100"),
        ('architecture = "x86_64"\n', "mtriple='aarch64-linux-gnu', architecture='x86_64'"),
        ("[memory]\nl2_bytes = 1024\n", "`l1d_bytes <= l2_bytes` must hold, but got (l1d_bytes=32768, l2_bytes=1024)"),
        ('[source]\n"core.speed" = "a book"\n', "`source` names 'core.speed'"),
        ("schema = 7\n", "`schema` = 7: this hwprune reads schema 1"),
        ('name = "other"\n', "`name` = 'other', but the file is mine.toml"),
        ('[core]\nprecision = "fp16"\n', "needs `architecture` = 'aarch64' and '+fullfp16' in `codegen.mattr`"),
        ('[core]\nprecision = "half"\n', "`core.precision` = 'half': input should be 'fp32' or 'fp16'"),
        ('host = "aarch64"\n', "`host` is for GPUs, but got (host='aarch64', architecture='aarch64')"),
        ("cores = [\n", "is not TOML"),
    ],
)
def test_what_is_said_about_a_bad_profile(folder: Path, text: str, complaint: str) -> None:
    path = write(folder, "mine", 'extends = "rpi4"\n' + text)
    [found] = target.complaints(path)
    assert complaint in found
    with pytest.raises(TargetError) as caught:
        target.load_file(path)
    assert complaint in str(caught.value) and "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[gpu]\nwarps = 3\n", "unknown key `gpu.warps`, did you mean `warp_size`?"),
        ("[gpu]\nmax_threads_per_sm = 512\n", "(max_threads_per_block=1024, max_threads_per_sm=512)"),
        ("[gpu]\nwarp_size = 48\n", "(max_threads_per_block=1024, warp_size=48)"),
        ("[gpu]\nshared_memory_per_block_bytes = 200000\n", "(shared_memory_per_block_bytes=200000, shared_memory_per"),
        ("[memory]\nl1d_bytes = 65536\n", "(shared_memory_per_sm_bytes=167936, l1d_bytes=65536)"),
        ('[gpu]\nprecision = ["tf32"]\n', "`gpu.precision` must name fp32, which every kernel can fall back to, but got ['tf32']"),
        ('host = "riscv64"\n', "`host` = 'riscv64': input should be 'x86_64' or 'aarch64'"),
        ('[codegen]\narch = "ampere"\n', "`codegen.arch` must be sm_XX for architecture 'cuda', but got 'ampere'"),
    ],
)
def test_what_is_said_about_a_bad_gpu(folder: Path, text: str, complaint: str) -> None:
    [found] = target.complaints(write(folder, "mine", 'extends = "a100"\n' + text))
    assert complaint in found


def test_a_cuda_profile_needs_a_gpu_and_no_other_has_one(folder: Path) -> None:
    lines = to_toml(target.load("a100")).split("\n[gpu]\n")
    text = lines[0].replace('name = "a100"', 'name = "mine"')
    [found] = target.complaints(write(folder, "mine", text))
    assert "architecture='cuda', [gpu] is missing" in found
    gpu = "[gpu]\n" + lines[1].split("\n[source]\n")[0]
    [found] = target.complaints(write(folder, "other", 'extends = "rpi4"\n' + gpu))
    assert "architecture='aarch64', [gpu] is given" in found


def test_cuda_is_a100_and_says_so_where_no_gpu_is(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    cuda, a100 = target.load("cuda"), target.load("a100")
    assert cuda.digest() == a100.digest()
    assert target.notices("cuda", cuda) == [f"target 'cuda' stands for a100: {a100.description}; no GPU is here that would say otherwise"]


@pytest.mark.parametrize(
    "line, name, told",
    [
        ("NVIDIA H100 80GB HBM3, 9.0", "h100", "the GPU of this machine is NVIDIA H100 80GB HBM3"),
        ("NVIDIA H200, 9.0", "h200", "the GPU of this machine is NVIDIA H200"),
        ("NVIDIA GeForce RTX 4090, 8.9", "rtx4090", "the GPU of this machine is"),
        ("Orin (nvgpu), 8.7", "jetson-orin", "the GPU of this machine is Orin"),
        ("NVIDIA A10, 8.6", "rtx3090", "the GPU of this machine is NVIDIA A10"),  # of its architecture, which the notice names
        ("Tesla V100-SXM2-16GB, 7.0", "a100", "Tesla V100-SXM2-16GB (sm_70), has no profile"),
        ("No devices were found", "a100", "no GPU is here"),
    ],
)  # fmt: skip
def test_cuda_is_the_gpu_that_is_here(folder: Path, monkeypatch, line: str, name: str, told: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{line}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    found = target.load("cuda")
    assert (found.name, found.alias_of, found.digest()) == ("cuda", name, target.load(name).digest())
    [notice] = target.notices("cuda", found)
    assert f"stands for {name}" in notice and told in notice


def test_own_profile_called_cuda_comes_before_the_gpu_that_is_here(folder: Path, monkeypatch) -> None:
    test_cuda_is_the_gpu_that_is_here(folder, monkeypatch, "NVIDIA H200, 9.0", "h200", "NVIDIA H200")
    write(folder, "cuda", 'extends = "rtx3090"\n')
    assert target.load("cuda").codegen.arch == "sm_86" and target.load("cuda").alias_of is None


def test_all_complaints_are_given_at_once(folder: Path) -> None:
    path = write(folder, "mine", 'extends = "rpi4"\ncores = 0\ncolour = "red"\n[memory]\ndram_gb_per_s = -1\n')
    assert len(target.complaints(path)) == 3


def test_missing_parents_circles_and_files(folder: Path) -> None:
    path = write(folder, "mine", 'extends = "rpi44"\n')
    with pytest.raises(TargetError, match="names no profile; nearest: rpi4"):
        target.load_file(path)
    write(folder, "a", 'extends = "b"\n')
    with pytest.raises(TargetError, match="runs in a circle: a -> b -> a|circle"):
        target.load_file(write(folder, "b", 'extends = "a"\n'))
    with pytest.raises(TargetError, match="cannot read target profile nowhere.toml: No such file"):
        target.load("nowhere.toml")


def test_digest_of_a_profile_that_gives_more_bandwidths_is_another_one() -> None:
    plain = target.load("rpi4")
    more = plain.model_copy(update={"memory": plain.memory.model_copy(update={"l1_gb_per_s": 20.0})})
    assert more.digest() != plain.digest()
    assert "l1_gb_per_s" not in to_toml(plain) and "l1_gb_per_s = 20.0" in to_toml(more)


def test_float16_is_another_target_and_float32_is_none(folder: Path) -> None:
    rpi5, half = target.load("rpi5"), target.load("rpi5-fp16")
    assert (rpi5.dtype, rpi5.lanes, half.dtype, half.lanes) == ("float32", 4, "float16", 8)
    said = target.load_file(write(folder, "mine", 'extends = "rpi5"\n[core]\nprecision = "fp32"\n'))
    assert said.digest() == rpi5.digest() != half.digest()


def test_a_processor_says_that_it_has_float16_in_its_own_words() -> None:
    assert target.features_of("fp asimd fphp asimdhp") == {"fp", "neon", "fphp", "fullfp16"}


def test_programs_of_a_gpu_run_on_its_hosts_processor(folder: Path) -> None:
    assert [target.load(name).machine for name in ("h100", "jetson-orin", "rpi4", "x86")] == ["x86_64", "aarch64", "aarch64", "x86_64"]
    assert [target.load(name).host_threads for name in ("h100", "rpi4")] == [1, 4]
    grace = target.load_file(write(folder, "grace", 'extends = "h100"\nhost = "aarch64"\n'))
    assert grace.machine == "aarch64" and grace.digest() != target.load("h100").digest()
