"""Two hosts on one machine: network namespaces joined by a cable, a Ray node in each.

They share the disk, as the machines of a cluster share theirs; each has a loopback, an address and
ports of its own. Needs root and iproute2.
"""

import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
PORT = 6379
PATIENCE_S = 120
# Ports of a namespace are its own, names and addresses too: only the namespaces' names must differ.
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str | None:
    """Why there can be no second host here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no ip (iproute2)"
    try:
        with Hosts(Path("/nonexistent")):
            return None
    except OSError as error:
        return str(error)


class Hosts:
    """A context manager: two namespaces. `logs`: where Ray's own output goes."""

    def __init__(self, logs: Path):
        self._logs = logs
        self._names = [f"grpo-{os.getpid()}-{letter}" for letter in "ab"]
        # Ray's token, as it is handed to every machine of a cluster.
        self._token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def __enter__(self) -> "Hosts":
        # Ray's folder is one for all: two heads at one address are too many, wherever they are.
        self._alone = (Path(tempfile.gettempdir()) / "grpo-hosts.lock").open("w")
        fcntl.flock(self._alone, fcntl.LOCK_EX)
        _sweep()
        try:
            for name in self._names:
                ip("netns", "add", name)
            one, other = self._names
            ip(*f"link add eth0 netns {one} type veth peer name eth0 netns {other}".split())
            for name, mine, gateway in zip(
                self._names, ADDRESSES, reversed(ADDRESSES), strict=True
            ):
                ip("-n", name, "addr", "add", f"{mine}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    ip("-n", name, "link", "set", device, "up")
                # Nothing is beyond it: by its default route a host finds its own address.
                ip("-n", name, "route", "add", "default", "via", gateway)
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for name in set(self._names) & set(_namespaces()):
            ip("netns", "delete", name)
        self._alone.close()

    @property
    def ray_address(self) -> str:
        return f"{ADDRESSES[0]}:{PORT}"

    def run(
        self,
        host: int,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        folder: Path,
    ) -> subprocess.Popen[bytes]:
        """Starts a program on a host in a folder, its output in a file."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self._names[host], *command],
            cwd=folder,
            env={**os.environ, **self._token, **environment},
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def start_ray(self, environment: Mapping[str, str]) -> None:
        """A new cluster: the head on host 0, then host 1, which joins it. Both are started in
        another folder than a run will be."""
        for host, address in enumerate(ADDRESSES):
            log = self._logs / f"ray-{host}-{time.monotonic_ns()}.txt"
            where = (
                ["--head", f"--port={PORT}", "--include-dashboard=false"]
                if host == 0
                else [f"--address={self.ray_address}"]
            )
            command = [str(RAY), "start", "--block", *where, f"--node-ip-address={address}"]
            command += ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
            started = self.run(host, command, log, environment, self._logs)
            deadline = time.monotonic() + PATIENCE_S
            while "Ray runtime started" not in log.read_text(errors="replace"):
                assert started.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.1)

    def processes(self, host: int) -> dict[int, str]:
        """The command of each process of a host."""
        found: dict[int, str] = {}
        for pid in ip("netns", "pids", self._names[host]).split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # gone in the meantime
                continue
            found[int(pid)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def kill(self, *hosts: int) -> None:
        """These hosts (none named: both) lose their power: SIGKILL to every process of theirs."""
        _kill_all_in([self._names[host] for host in hosts or (0, 1)])


def _namespaces() -> list[str]:
    return [line.split()[0] for line in ip("netns", "list").splitlines()]


def _kill_all_in(names: Sequence[str]) -> None:
    present = [name for name in names if name in _namespaces()]
    deadline = time.monotonic() + PATIENCE_S
    while left := [pid for name in present for pid in ip("netns", "pids", name).split()]:
        assert time.monotonic() < deadline, f"they do not die: {left}"
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)


def _sweep() -> None:
    """Removes what a test run that was killed has left behind."""
    for name in _namespaces():
        owner = re.fullmatch(r"grpo-(\d+)-[ab]", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            _kill_all_in([name])
            ip("netns", "delete", name)
