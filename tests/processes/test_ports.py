"""A port that a process was told to meet at is its own until it listens there."""

import socket
import subprocess
import sys
from datetime import timedelta

import torch.distributed as dist

from grpo.fleet.cluster import hold_port

TAKE = "import socket, sys; socket.socket().bind(('', int(sys.argv[1])))"


def taken_by_another(port: int) -> bool:
    """Whether a process that binds this port gets it."""
    told = subprocess.run([sys.executable, "-c", TAKE, str(port)], capture_output=True, text=True)
    assert told.returncode == 0 or "Address already in use" in told.stderr
    return told.returncode == 0


def test_nobody_else_gets_a_port_between_the_meeting_point_and_the_meeting():
    with hold_port() as held:
        port = held.getsockname()[1]
        assert not taken_by_another(port)
    assert taken_by_another(port), "once it is let go, anybody may have it"


def test_a_store_of_torch_listens_on_a_port_that_is_held():
    with hold_port() as held:
        port = held.getsockname()[1]
        # Documented in torch.distributed, though not listed in its __all__.
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            "127.0.0.1", port, 1, True, timeout=timedelta(seconds=20)
        )
        store.set("met", "here")
        assert store.get("met") == b"here"


def test_a_socket_like_vllms_listens_on_a_port_that_is_held():
    with hold_port() as held, socket.socket() as listening:
        port = held.getsockname()[1]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        with socket.create_connection(("127.0.0.1", port)) as asking:
            asking.sendall(b"x")
            with listening.accept()[0] as answering:
                assert answering.recv(1) == b"x"
