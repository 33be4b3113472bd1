"""Everything that a device needs to measure kernels, as one tar file: agent, libraries of kernels, and the job.

``tar xf b.tar && ./measure`` on the device; no Python and no network there, and no library but the C library (and the driver
of a GPU): kernels carry their own thread pool (``kernels/native/pool.c``) or launch themselves (``gpu_program.c``).
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from hwprune.compile.link import last_line, linker
from hwprune.errors import CompileError, MeasureError
from hwprune.fsio import sha256_file, write_atomic, write_json_atomic
from hwprune.kernels import candidates
from hwprune.kernels.cuda import resources
from hwprune.measure.agent import build_agent
from hwprune.measure.device import software
from hwprune.measure.job import BuiltLibrary, Header, Job, Limits, Placed
from hwprune.measure.timed import Kernel, link_kernels, reference, scheduled
from hwprune.progress import SILENT, Progress
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: Kernels of one library: they are timed together, so a crash costs the measurements of so many.
_KERNELS_PER_LIBRARY = 24

#: Where libraries turn out large, fewer schedules of the workloads that are still to come are packed.
SIZE_LIMIT_BYTES = 60_000_000

AGENT = "measure"


@dataclass(frozen=True)
class Asked:
    """A workload to measure, with the rule's ``schedules`` most promising schedules."""

    workload: Workload
    schedules: int


def build_job(
    asked: Sequence[Asked], profile: TargetProfile, threads: int, spread_bytes: int, folder: Path,
    progress: Progress = SILENT, limits: Limits = Limits(), exact: bool = False, limit_bytes: int = SIZE_LIMIT_BYTES,
) -> Job:  # fmt: skip
    """Build the kernels into ``folder`` (as ``lib/*.so``), and say what is to be measured.

    What stands in the folder from an earlier, interrupted call is used again. Raises CompileError, MeasureError.
    """
    check_packable(profile)
    builder = _Builder(profile, threads, folder)
    builder.add([Asked(reference(profile)[0], 1)], exact=True)
    batches = _batches(asked)
    with progress.task("building kernels", total=len(batches)) as task:
        for number, batch in enumerate(batches):
            room = (limit_bytes - builder.size_bytes) / (len(batches) - number)
            builder.add(batch, exact, room)
            task.advance()
    return builder.job(Header(
        target=profile.name, profile=profile.digest(), software=software(profile, spread_bytes), machine=profile.machine,
        threads=threads, spread_bytes=spread_bytes, gpu=profile.codegen.arch or "",
    ), limits)  # fmt: skip


def check_packable(profile: TargetProfile) -> None:
    """CompileError, with the reason, where no kernels can be packed for ``profile``."""
    linker(profile)
    if profile.gpu is not None:
        resources.nvcc()


def write_bundle(job: Job, profile: TargetProfile, folder: Path, out: Path) -> None:
    """Pack ``job``, its libraries in ``folder`` and the agent into the tar file ``out``. The same job gives the same bytes
    but for the compiler's."""
    build_agent(profile, folder / AGENT)

    def write(path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            _pack(tar, AGENT, (folder / AGENT).read_bytes(), 0o755)
            _pack(tar, "job.tsv", job.to_text().encode(), 0o644)
            for library in job.libraries:
                _pack(tar, library.file, (folder / library.file).read_bytes(), 0o644)

    write_atomic(out, write)


def _pack(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _batches(asked: Sequence[Asked]) -> list[list[Asked]]:
    batches: list[list[Asked]] = []
    for one in asked:
        if not batches or sum(a.schedules for a in batches[-1]) + one.schedules > _KERNELS_PER_LIBRARY:
            batches.append([])
        batches[-1].append(one)
    return batches


class _Builder:
    """Builds library after library and keeps what the job says of them."""

    def __init__(self, profile: TargetProfile, threads: int, folder: Path):
        self.profile, self.threads, self.folder = profile, threads, folder
        self.size_bytes = 0
        self._libraries: list[BuiltLibrary] = []
        self._asked: list[Asked] = []
        self._kernels: list[Placed] = []
        self._failures: list[tuple[int, str, str]] = []

    def job(self, header: Header, limits: Limits) -> Job:
        return Job(
            header, limits, tuple(self._libraries), tuple(a.workload for a in self._asked),
            tuple(a.schedules for a in self._asked), tuple(self._kernels), tuple(self._failures),
        )  # fmt: skip

    def add(self, batch: Sequence[Asked], exact: bool, room_bytes: float = float("inf")) -> None:
        """The library of a batch, with half as many schedules of each workload as long as it takes more than its room."""
        while True:
            configs = [[c.to_text() for c in candidates(a.workload, self.profile, exact)[: a.schedules]] for a in batch]
            path, facts = self._build([a.workload for a in batch], configs)
            most = max(a.schedules for a in batch)
            if path.stat().st_size <= room_bytes or most == 1:
                break
            batch = [Asked(a.workload, max(1, min(a.schedules, most // 2))) for a in batch]
        is_reference, first = not self._libraries, len(self._asked)
        number = len(self._libraries)
        self._kernels += [
            Placed(-1 if is_reference else first + i, number, step, size, config)
            for step, (i, config, size) in enumerate(facts["kernels"])
        ]
        if not is_reference:
            self._failures += [(first + i, why, config) for i, config, why in facts["failures"]]
            self._asked += batch
        elif facts["failures"]:
            raise CompileError(f"the reference kernel cannot be built for target {self.profile.name!r}: {facts['failures'][0][2]}")
        self._libraries.append(BuiltLibrary(f"lib/{path.name}", sha256_file(path)))
        self.size_bytes += path.stat().st_size

    def _build(self, workloads: Sequence[Workload], configs: list[list[str]]) -> tuple[Path, dict]:
        """The library, and its ``kernels`` ([workload, schedule, bytes of constants]) and ``failures`` ([workload, schedule,
        why]); taken as they are where an earlier call has built them."""
        wanted = json.dumps([software(self.profile), self.threads, [w.key for w in workloads], configs])
        name = hashlib.sha256(wanted.encode()).hexdigest()[:16]
        path, about = self.folder / "lib" / f"{name}.so", self.folder / "lib" / f"{name}.json"
        if about.exists() and path.exists():
            return path, json.loads(about.read_text())
        functions, failures = {}, []
        for i, (workload, texts) in enumerate(zip(workloads, configs)):
            made, failed = scheduled(workload, texts, self.profile)
            functions.update({(i, text): function for text, function in made.items()})
            failures += [[i, text, why] for text, why in failed.items()]

        def link(out: Path, chosen: Mapping) -> list[int]:
            kernels = [Kernel(workloads[i], text) for i, text in chosen]
            return link_kernels(kernels, chosen.values(), self.profile, self.threads, out)

        def library() -> list[int]:
            if not functions:
                raise MeasureError(f"no schedule of workload {workloads[0].key} can be built: {failures[0][2]}")
            sizes: list[int] = []
            write_atomic(path, lambda p: sizes.extend(link(p, functions)))
            return sizes

        try:
            sizes = library()
        except CompileError:
            functions, unbuilt = _buildable(functions, link)
            failures += [[i, text, why] for (i, text), why in unbuilt.items()]
            sizes = library()
        facts = {"kernels": [[i, text, size] for (i, text), size in zip(functions, sizes)], "failures": failures}
        write_json_atomic(about, facts)
        return path, facts


def _buildable(functions: Mapping, link: Callable[[Path, Mapping], object]) -> tuple[dict, dict[Any, str]]:
    """Those that can be built alone; and why the others cannot."""
    good, failed = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for key, function in functions.items():
            try:
                link(Path(folder, "one.so"), {key: function})
                good[key] = function
            except CompileError as err:
                failed[key] = last_line(err)
    return good, failed
