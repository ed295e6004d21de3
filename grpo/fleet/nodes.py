"""The machines of a Ray cluster: which there are, what they see on disk, and GPUs kept on them."""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import AuthenticationError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grpo.errors import RunError, UserError, WorkerFault
from grpo.fleet.environment import RAY_ADDRESS, ray_address
from grpo.fleet.log_tail import last_lines
from grpo.fleet.places import check_places
from grpo.stop import handlers_kept

_KNOCK_S = 10.0
RESERVE_S = 60.0  # for GPUs that another run has just given back
_LOOK_S = 60.0  # for a machine to say what it sees; its first process takes some seconds
_APPEAR_S = 10.0  # network file systems show a new file late
_TAIL_S = 20.0
# Ray gives every node this label.
_NODE_ID = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster. `id` is Ray's; fake nodes of one machine share an address."""

    id: str
    address: str
    gpus: int


def connect() -> None:
    """Joins the Ray cluster that RAY_ADDRESS names, or starts a Ray here. Raises UserError where
    none answers at that address, or does not let this process in."""
    address = ray_address()
    check_places()
    if address is not None:
        _knock(address)
    # By default Ray's workers yield the CPU to every other process on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray would start a worker for each core in advance, and wait for all of them. A run's own have
    # environment variables, for which Ray starts new ones.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Ray's notices about itself, such as that token authentication is on, do not concern a run.
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with handlers_kept():  # Ray's own handler of SIGTERM would end the run with nothing saved
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
    except (OSError, RayError, RuntimeError, ValueError) as error:
        if address is None:
            raise RunError(
                f"Ray does not start on this machine ({type(error).__name__}: "
                f"{' '.join(str(error).split())}). Its logs are in the folder ray of RAY_TMPDIR, "
                "TMPDIR or /tmp"
            ) from error
        ray.shutdown()  # versions are compared when the session is already half open
        raise _nobody_at(address, error) from error


def _knock(address: str) -> None:
    """Ray itself would try an address where nobody listens for minutes, in words of its own."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():  # such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise _nobody_at(address, error) from error


def _nobody_at(address: str, error: Exception) -> UserError:
    why = " ".join(str(error).split())  # Ray's words on versions are several lines
    return UserError(
        f"{RAY_ADDRESS} is {address!r}, and no Ray cluster can be joined there "
        f"({type(error).__name__}: {why}). {_mend(error)}, or unset {RAY_ADDRESS} to stay on this "
        "machine"
    )


def _mend(error: Exception) -> str:
    if isinstance(error, AuthenticationError):
        return (
            "The cluster demands a token: `export RAY_AUTH_MODE=token` here and, before "
            "`ray start`, on every machine, each with the same ~/.ray/auth_token"
        )
    if isinstance(error, RuntimeError) and "ersion mismatch" in str(error):
        return "Install the same versions of Python and Ray on all machines"
    return "Start one with `ray start --head`, give the address that it prints"


def alive() -> list[Node]:
    """Every machine that is up, this one first, then by address."""
    here = ray.get_runtime_context().get_node_id()
    found = [
        Node(each["NodeID"], each["NodeManagerAddress"], int(each["Resources"].get("GPU", 0)))
        for each in ray.nodes()
        if each["Alive"]
    ]
    return sorted(found, key=lambda node: (node.id != here, _numbers(node.address), node.id))


def _numbers(address: str) -> list[tuple[int, str]]:
    """10.0.0.9 comes before 10.0.0.10."""
    return [(int(part) if part.isdigit() else 0, part) for part in address.split(".")]


@cache
def gpus_at(address: str) -> tuple[int, ...]:
    """GPUs of each machine of the cluster that RAY_ADDRESS names, this one's first. Asked once: a
    run looks again when it places its workers."""
    assert address == ray_address()
    connect()
    try:
        return tuple(node.gpus for node in alive())
    finally:
        ray.shutdown()


def forget_machines() -> None:
    """What is known of the cluster may not hold any more."""
    gpus_at.cache_clear()


def reserve(bundles: Sequence[tuple[Node, int]], everywhere: Sequence[Node]) -> Any:
    """Keeps GPUs on machines, all of them or none: a placement group with a bundle for each entry.
    Raises WorkerFault where they do not come free, as on a machine that was lost a moment ago."""
    group = placement_group(
        [{"GPU": float(gpus)} for _, gpus in bundles],
        bundle_label_selector=[{_NODE_ID: node.id} for node, _ in bundles],
    )
    if group.wait(RESERVE_S):
        return group
    remove_placement_group(group)
    wanted: dict[Node, list[str]] = {}
    for node, gpus in bundles:
        wanted.setdefault(node, []).append(str(gpus))
    needs = "; ".join(f"{' + '.join(gpus)} on {node.address}" for node, gpus in wanted.items())
    raise WorkerFault(
        "the run's GPUs",
        f"the run's GPUs could not be had within {RESERVE_S:.0f} s: it needs {needs}, and the "
        f"cluster has {_listed(everywhere)}. Something else holds some of them: `ray status` says "
        "how many are in use",
    )


def give_back(group: Any) -> None:
    remove_placement_group(group)


def pinned(node: Node) -> NodeAffinitySchedulingStrategy:
    """On this machine or not at all."""
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def _listed(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{node.gpus} GPUs on {node.address}" for node in nodes)


# --- what a machine has on its disk ---


def check_shared(nodes: Sequence[Node], folder: Path, others: Mapping[Path, str]) -> None:
    """Raises UserError unless every machine sees what the driver writes into `folder`, and has the
    `others`, each with what to do where it is missing; WorkerFault for one that does not answer."""
    token = folder / f".seen-by-all-{uuid4().hex[:8]}"
    token.write_text("written by the driver, to see whether every machine of the run has it\n")
    mends = {
        token: "put the run's folder (output) on a file system that all of them share",
        **others,
    }
    try:
        asked = [
            ray.remote(_missing)
            .options(num_cpus=0, scheduling_strategy=pinned(node), max_retries=0)
            .remote([str(path) for path in mends])
            for node in nodes
        ]
        for node, answer in zip(nodes, asked, strict=True):
            try:
                missing = ray.get(answer, timeout=_LOOK_S)
            except RayError as error:
                raise WorkerFault(  # lost a moment ago, and Ray had not noticed
                    f"machine {node.address}",
                    f"the machine {node.address} does not run what Ray sends it "
                    f"({type(error).__name__}: {error}). Is the same environment, grpo included, "
                    "installed there, and is the machine up?",
                ) from error
            if missing:
                lost = Path(missing[0])
                shown = folder if lost == token else lost
                raise UserError(
                    f"the machine {node.address} does not see {shown} as this one does: "
                    f"{mends[lost]}"
                )
    finally:
        token.unlink()


def _missing(paths: list[str]) -> list[str]:
    """Runs on the machine that is asked."""
    deadline = time.monotonic() + _APPEAR_S
    while True:
        missing = [path for path in paths if not Path(path).exists()]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def tail(log: Path, lines: int, node: Node | None) -> str:
    """The end of a log, read by the machine that wrote it; None: by this one. Where that machine is
    gone or does not answer, what can be read of it here, and a word about it."""
    if node is None or node.id == ray.get_runtime_context().get_node_id():
        return last_lines(str(log), lines)
    if node.id not in {each.id for each in alive()}:
        return _from_here(log, lines, f"the machine {node.address} has left the cluster")
    ask = ray.remote(last_lines).options(
        num_cpus=0, scheduling_strategy=pinned(node), max_retries=0
    )
    try:
        return ray.get(ask.remote(str(log), lines), timeout=_TAIL_S)
    except RayError as error:
        why = f"the machine {node.address} could not be asked for it: {type(error).__name__}"
        return _from_here(log, lines, why)


def _from_here(log: Path, lines: int, why: str) -> str:
    read = last_lines(str(log), lines)
    return f"{read}\n({why})" if read else f"({why})"
