"""The limits of containers: folder trees as each version of cgroup has them, and a process in a real one."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import machine

MACHINE_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MACHINE_CPUS = len(os.sched_getaffinity(0))
NO_LIMIT_V1 = 2**63 - 4096
MIB = 2**20


class Tree:
    """A /proc and the mounts that it describes."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.mounts = folder / "proc", folder / "mounts"
        (self.proc / "self").mkdir(parents=True)
        self.write("self/cgroup", "")
        self.write("self/mountinfo", "21 1 0:20 / / rw - ext4 /dev/vda rw\n")

    def write(self, name: str, text: str) -> None:
        with (self.proc / name).open("a") as file:
            file.write(text)

    def mount(self, kind: str, options: str, root: str = "/") -> Path:
        point = self.mounts / options.replace("/", "_")
        point.mkdir(parents=True)
        written = str(point).replace(" ", r"\040")
        self.write("self/mountinfo", f"31 23 0:28 {root} {written} rw,relatime shared:9 - {kind} {kind} rw,{options}\n")
        return point

    def version_2(self, path: str, root: str = "/") -> Path:
        self.write("self/cgroup", f"0::{path}\n")
        return self.mount("cgroup2", "nsdelegate", root)

    def version_1(self, controllers: str, path: str, root: str = "/") -> Path:
        self.write("self/cgroup", f"4:{controllers}:{path}\n")
        return self.mount("cgroup", controllers, root)

    def found(self) -> tuple[int, int]:
        return machine.memory(self.proc).amount, machine.cpus(self.proc).amount


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "a folder")


def limit(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_without_control_groups_the_machine_is_the_limit(tree: Tree) -> None:
    assert tree.found() == (MACHINE_MEMORY, MACHINE_CPUS)
    assert machine.memory(tree.proc).file is None and machine.cpus(tree.proc).file is None
    assert machine.memory(tree.proc / "missing") == machine.Limit(MACHINE_MEMORY, None)


def test_version_2(tree: Tree) -> None:
    point = tree.version_2("/pod/container")
    limit(point / "pod/container", memory__max=64 * MIB, cpu__max="50000 100000")
    assert tree.found() == (64 * MIB, 1)
    assert machine.memory(tree.proc).file == str(point / "pod/container/memory.max")


def test_version_2_inside_a_container(tree: Tree) -> None:
    """With its own namespace, a container sees its group as the root, whose limits are in the mounted folder."""
    limit(tree.version_2("/"), memory__max=64 * MIB, cpu__max="100000 100000")
    assert tree.found() == (64 * MIB, 1)


def test_version_2_without_limits(tree: Tree) -> None:
    limit(tree.version_2("/pod") / "pod", memory__max="max", cpu__max="max 100000")
    assert tree.found() == (MACHINE_MEMORY, MACHINE_CPUS)
    assert machine.memory(tree.proc).file is None


def test_the_smallest_limit_of_all_levels_counts(tree: Tree) -> None:
    point = tree.version_2("/pod/container/worker")
    limit(point, memory__max=512 * MIB, cpu__max="max 100000")
    limit(point / "pod", memory__max=64 * MIB, cpu__max="100000 100000")
    limit(point / "pod/container", memory__max=128 * MIB, cpu__max="9900000 100000")
    limit(point / "pod/container/worker", memory__max="max", cpu__max="max 100000")
    limit(point / "pod/another", memory__max=1 * MIB, cpu__max="1000 100000")
    assert tree.found() == (64 * MIB, 1)
    assert machine.cpus(tree.proc).file == str(point / "pod/cpu.max")


def test_version_1(tree: Tree) -> None:
    limit(tree.version_1("memory", "/pod") / "pod", memory__limit_in_bytes=64 * MIB)
    limit(tree.version_1("cpu,cpuacct", "/") / "", cpu__cfs_quota_us=150_000, cpu__cfs_period_us=100_000)
    limit(tree.version_1("pids", "/"), memory__limit_in_bytes=1 * MIB)
    assert tree.found() == (64 * MIB, min(2, MACHINE_CPUS))


def test_version_1_without_limits(tree: Tree) -> None:
    limit(tree.version_1("memory", "/"), memory__limit_in_bytes=NO_LIMIT_V1)
    limit(tree.version_1("cpu,cpuacct", "/"), cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    assert tree.found() == (MACHINE_MEMORY, MACHINE_CPUS)


@pytest.mark.parametrize("path", ["/docker/ab12", "/../outside", "/docker/ab"])
def test_version_1_of_a_container_that_sees_only_its_own_group(tree: Tree, path: str) -> None:
    """/proc names the group as the host does, the mount has only the container's part of the hierarchy."""
    limit(tree.version_1("memory", path, root="/docker/ab"), memory__limit_in_bytes=64 * MIB)
    assert machine.memory(tree.proc).amount == 64 * MIB


def test_a_group_below_that_of_the_container(tree: Tree) -> None:
    point = tree.version_1("memory", "/docker/ab/worker", root="/docker/ab")
    limit(point, memory__limit_in_bytes=NO_LIMIT_V1)
    limit(point / "worker", memory__limit_in_bytes=64 * MIB)
    assert machine.memory(tree.proc).amount == 64 * MIB


def test_both_versions_at_once(tree: Tree) -> None:
    limit(tree.version_2("/user/session") / "user/session", cgroup__procs=1)
    limit(tree.version_1("memory", "/user") / "user", memory__limit_in_bytes=64 * MIB)
    limit(tree.version_1("cpu", "/user") / "user", cpu__cfs_quota_us=1_000, cpu__cfs_period_us=100_000)
    assert tree.found() == (64 * MIB, 1)


@pytest.mark.parametrize("text", ["", "much", "-5", "0", "1.5", "\x00", "12 34 56"])
def test_files_that_cannot_be_understood_are_no_limit(tree: Tree, text: str) -> None:
    limit(tree.version_2("/"), memory__max=text, cpu__max=f"{text} 100000")
    limit(tree.version_1("memory", "/"), memory__limit_in_bytes=text)
    limit(tree.version_1("cpu", "/"), cpu__cfs_quota_us=100_000, cpu__cfs_period_us=text)
    tree.write("self/cgroup", f"{text}\nx\n:\n::\n")
    tree.write("self/mountinfo", f"{text}\n - \n1 2 3 - cgroup\n - cgroup cgroup rw\n")
    assert tree.found() == (MACHINE_MEMORY, MACHINE_CPUS)


def test_files_that_cannot_be_read_are_no_limit(tree: Tree) -> None:
    point = tree.version_2("/")
    (point / "memory.max").mkdir()
    (point / "cpu.max").write_bytes(b"\xff\xfe")
    assert tree.found() == (MACHINE_MEMORY, MACHINE_CPUS)


@given(
    st.lists(st.one_of(st.just("max"), st.integers(1, 2**64)), min_size=1, max_size=5),
    st.lists(st.one_of(st.just("max"), st.integers(1, 10**7)), min_size=1, max_size=5),
)
def test_never_more_than_any_limit_and_never_nothing(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int | str], quotas: list[int | str]
) -> None:
    tree = Tree(tmp_path_factory.mktemp("tree"))
    folder = tree.version_2("/" + "/".join("abcde"[: max(len(sizes), len(quotas))]))
    for i in range(5):
        limit(
            folder, memory__max=(sizes[i : i + 1] or ["max"])[0], cpu__max=f"{(quotas[i : i + 1] or ['max'])[0]} 100000"
        )
        folder = folder / "abcde"[i]
    memory, cpus = tree.found()
    assert memory == min([size for size in sizes if isinstance(size, int)] + [MACHINE_MEMORY])
    whole = [-(-quota // 100_000) for quota in quotas if isinstance(quota, int)]
    assert cpus == min([*whole, MACHINE_CPUS]) >= 1


def test_processes_of_one_machine_have_the_same_identity(tree: Tree) -> None:
    assert machine.identity() == machine.identity() != machine.identity(tree.proc)


@pytest.fixture
def group() -> Iterator[Callable[[dict[str, str]], Path]]:
    """Makes a control group below that of this process, in the hierarchy that has the given files."""
    made: list[Path] = []

    def make(files: dict[str, str]) -> Path:
        for own in own_groups():
            folder = own / f"manygate-{uuid.uuid4().hex[:8]}"
            try:
                folder.mkdir()
            except OSError:
                continue
            made.append(folder)
            try:
                for name, text in files.items():
                    if not (folder / name).exists():
                        raise FileNotFoundError(name)
                    (folder / name).write_text(text)
            except OSError:
                continue
            return folder
        pytest.skip(f"no control group with {', '.join(files)} can be made here: it needs root and a writable cgroup")

    yield make
    for folder in made:
        folder.rmdir()


def own_groups() -> list[Path]:
    """The folders of this process's groups."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, point = after.split()[0], Path(before.split()[4])
        for entry in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = entry.split(":", 2)
            if kind.startswith("cgroup") and set(controllers.split(",")) - {""} <= set(after.split()[2].split(",")):
                found.append(point / path.strip("/"))
    return [folder for folder in found if folder.is_dir()]


REPORT = "from pipeline import machine; print(machine.memory().amount, machine.cpus().amount)"


def reported_in(groups: list[Path]) -> list[int]:
    """What a process in these groups finds."""
    enter = "".join(f"echo $$ > {folder / 'cgroup.procs'} && " for folder in groups)
    command = ["sh", "-c", f'{enter}exec "$0" -c "$1"', sys.executable, REPORT]
    return [int(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def test_a_process_in_a_real_group_finds_its_limits(group: Callable[[dict[str, str]], Path]) -> None:
    size = 512 * MIB
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        groups = [group({"memory.max": str(size), "cpu.max": "60000 100000"})]
    else:
        groups = [group({"memory.limit_in_bytes": str(size)}), group({"cpu.cfs_quota_us": "60000"})]
    assert reported_in(groups) == [size, 1]
    assert reported_in([]) == [machine.memory().amount, machine.cpus().amount]
