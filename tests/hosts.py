"""Two machines for a training: network namespaces with names of their own where these can be made, else loopback."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.killing import ended, start
from vitcls.__main__ import main

LONGEST = 120  # seconds until the system ends a process that hangs, so that none is left over
# Without it a restarted process may read addresses of the ones before (torch 2.15) and wait for them.
OWN_STORE: dict[str, object] = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": 1}
ADDRESSES = ("10.77.0.1", "10.77.0.2")
_NEW_NETWORK, _NEW_NAME = 0x40000000, 0x04000000  # CLONE_NEWNET, CLONE_NEWUTS


@dataclass(frozen=True)
class Host:
    address: str
    interface: str
    name: str  # as sentences should tell it
    namespace: str | None = None

    def enter(self) -> None:
        """Make this process, and what it starts, one of the machine."""
        os.environ["GLOO_SOCKET_IFNAME"] = self.interface
        if self.namespace is None:
            return
        system = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", self.namespace).open() as file:
            assert system.setns(file.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
        assert system.unshare(_NEW_NAME) == 0, os.strerror(ctypes.get_errno())
        socket.sethostname(self.name)


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Two namespaces that are joined by a cable; without the right to make them, the loopback twice."""
    names = [f"vitcls{os.getpid()}{end}" for end in "ab"]
    cables = [f"v{os.getpid()}{end}" for end in "ab"]
    made: list[str] = []
    try:
        for name in names:
            made += [name] if _ip("netns", "add", name) else []
        if made == names and _ip(
            "link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1]
        ):
            yield [_connected(*end) for end in zip(names, cables, ADDRESSES, "ab", strict=True)]
        else:
            yield [Host("127.0.0.1", "lo", socket.gethostname())] * 2
    finally:
        for name in made:
            _ip("netns", "del", name)


def _connected(name: str, cable: str, address: str, end: str) -> Host:
    if end == "b":
        assert _ip("link", "set", cable, "netns", name)
    assert _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
    assert all(_ip("-n", name, "link", "set", interface, "up") for interface in (cable, "lo"))
    return Host(address, cable, f"node-{end}", name)


def _ip(*words: str) -> bool:
    return shutil.which("ip") is not None and subprocess.run(["ip", *words], capture_output=True).returncode == 0


def train(
    hosts: list[Host], words: list[list[object]], log: Path, local: int = 1, caches: list[Path] | None = None
) -> tuple[list[int], list[str]]:
    """One training on all hosts, `local` processes on each, with torchrun's variables but without its agents.

    Args:
        hosts: the machines.
        words: of the command line on each.
        log: base of the names of the logs.
        local: processes of a machine.
        caches: of `datasets`, on each machine's own disk; not given: the same for all.

    Returns:
        exit status and output of each process.
    """
    port = _free_port(hosts[0])
    shared = {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"WORLD_SIZE": local * len(hosts), "LOCAL_WORLD_SIZE": local, "GROUP_WORLD_SIZE": len(hosts)}
    children, logs = [], []
    for node, host in enumerate(hosts):
        for process in range(local):
            place = {"RANK": node * local + process, "LOCAL_RANK": process, "GROUP_RANK": node}
            logs.append(log.with_suffix(f".{place['RANK']}"))
            children.append(
                start(words[node], logs[-1], shared | place, run=_within(host, main, caches and caches[node]))
            )
    return [ended(child) for child in children], [file.read_text() for file in logs]


def train_elastic(hosts: list[Host], words: list[object], log: Path, restarts: int) -> tuple[list[int], list[str]]:
    """One training on all hosts, a process on each, by torchrun's agents; these fork, for to import takes seconds."""
    endpoint = f"{hosts[0].address}:{_free_port(hosts[0])}"
    children, logs = [], []
    for node, host in enumerate(hosts):
        config = LaunchConfig(
            min_nodes=len(hosts),
            max_nodes=len(hosts),
            nproc_per_node=1,
            rdzv_backend="c10d",
            rdzv_endpoint=endpoint,
            rdzv_configs={"is_host": node == 0},
            local_addr=host.address,
            max_restarts=restarts,
            start_method="fork",
            run_id="test",
        )
        logs.append(log.with_suffix(f".{node}"))
        children.append(start(words, logs[-1], OWN_STORE, run=_within(host, _agent(config))))
    return [ended(child) for child in children], [file.read_text() for file in logs]


def _agent(config: LaunchConfig) -> Callable[[list[str]], int]:
    def run(words: list[str]) -> int:
        try:
            elastic_launch(config, _worker)(words)
        except ChildFailedError:
            return 1
        return 0

    return run


def _worker(words: list[str]) -> None:
    signal.alarm(LONGEST)
    status = main(words)
    if status:
        raise SystemExit(status)


def _within(host: Host, run: Callable[[list[str]], int], cache: Path | None = None) -> Callable[[list[str]], int]:
    def entered(words: list[str]) -> int:
        signal.alarm(LONGEST)
        host.enter()
        if cache is not None:
            datasets.config.HF_DATASETS_CACHE = cache
        return run(words)

    return entered


def _free_port(host: Host) -> int:
    if host.namespace is not None:
        return 29500
    with socket.socket() as free:
        free.bind((host.address, 0))
        return free.getsockname()[1]
