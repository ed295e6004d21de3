"""What a run's processes on other machines hear of the driver's environment, and where they are."""

import socket
from pathlib import Path

import pytest
import ray
from ray.exceptions import AuthenticationError

from grpo.errors import UserError
from grpo.fleet import nodes
from grpo.fleet.environment import NAMES, PREFIXES, passed_on, ray_address

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "several_machines.md"


@pytest.mark.parametrize(
    "name",
    [
        "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "HF_HOME", "HF_HUB_OFFLINE",
        "WANDB_MODE", "VLLM_LOGGING_LEVEL", "TORCH_LOGS", "PYTORCH_ALLOC_CONF", "OMP_NUM_THREADS",
        "TOKENIZERS_PARALLELISM", "GRPO_ANYTHING", "PYTHONPATH", "http_proxy", "HTTPS_PROXY",
        "no_proxy", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_ORDER", "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
    ],
)  # fmt: skip
def test_what_changes_how_a_worker_computes_and_connects_is_passed_on(name: str):
    assert passed_on({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "PATH", "HOME", "LD_LIBRARY_PATH",
        "MASTER_ADDR", "VLLM_HOST_IP", "HF_TOKEN", "WANDB_API_KEY", "NCCL",
    ],
)  # fmt: skip
def test_what_belongs_to_one_machine_or_to_nobody_else_stays(name: str):
    assert passed_on({name: "x"}) == {}


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_a_proxys_password_stays_with_the_driver(name: str):
    """Ray writes what it is told of a process into its logs."""
    for value in ("http://me:secret@proxy:3128", "me:secret@proxy:3128", "socks5h://me@proxy"):
        assert passed_on({name: value}) == {}
    assert passed_on({name: "http://proxy:3128"}) == {name: "http://proxy:3128"}
    assert passed_on({"VLLM_X": "a@b"}) == {"VLLM_X": "a@b"}


def test_the_page_on_several_machines_lists_all_of_them():
    page = HOWTO.read_text()
    missing = [prefix for prefix in PREFIXES if f"`{prefix}*`" not in page]
    missing += [name for name in NAMES if name.islower() and f"`{name}`" not in page]
    missing += [name for name in NAMES if name.startswith("CUDA") and f"`{name}`" not in page]
    assert not missing


@pytest.mark.parametrize("address", ["", "local"])
def test_without_an_address_a_run_starts_a_ray_of_its_own(
    address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_address() is None


def test_the_address_of_rays_client_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match=r"'ray://head:10001', which is for Ray's client: log in"):
        ray_address()


def test_an_address_where_nobody_listens_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    """Ray itself tries for minutes."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and never listens
        address = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError) as raised:
            nodes.gpus_at(address)
    said = str(raised.value)
    assert said.startswith(f"RAY_ADDRESS is {address!r}, and no Ray cluster can be joined there")
    assert "`ray start --head`" in said and "unset RAY_ADDRESS" in said


def refused_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a cluster that answers and lets nobody in. The session that Ray may have
    begun is ended."""
    ended: list[bool] = []

    def init(**_: object):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(UserError) as raised:
        nodes.connect()
    assert ended == [True]
    return str(raised.value)


def test_a_cluster_that_demands_a_token_is_told_from_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
):
    said = refused_with(AuthenticationError("no token"), monkeypatch)
    assert "demands a token: `export RAY_AUTH_MODE=token`" in said
    assert "the same ~/.ray/auth_token" in said
    assert "ray start --head" not in said


def test_other_versions_of_ray_or_python_are_named_with_the_mend(monkeypatch: pytest.MonkeyPatch):
    told = "Version mismatch: The cluster was started with:\n    Ray: 2.58.0\n    Python: 3.12.1"
    said = refused_with(RuntimeError(told), monkeypatch)
    assert "The cluster was started with: Ray: 2.58.0 Python: 3.12.1" in said
    assert "Install the same versions of Python and Ray on all machines" in said
    said = refused_with(RuntimeError("something else"), monkeypatch)
    assert "something else" in said and "`ray start --head`" in said


def test_every_shell_of_the_documented_start_turns_the_token_on():
    """Without it Ray's `start --address` and a run send no token, though the file is there."""
    start = HOWTO.read_text().split("All ranks are")[0]
    both, rest = start.split("# on the first\n")
    driver = rest.split("# on the first again\n")[1]
    assert "export RAY_AUTH_MODE=token" in both and "export RAY_AUTH_MODE=token" in driver


def test_the_end_of_a_log_that_is_not_there_is_empty(tmp_path: Path):
    log = tmp_path / "rollout-0.log"
    assert nodes.tail(log, 15, None) == ""
    log.write_bytes(b"one\ntwo\n\xff three\n")
    assert nodes.tail(log, 2, None) == "two\n\ufffd three"


def test_addresses_are_sorted_as_numbers():
    addresses = ["10.0.0.10", "10.0.0.9", "10.0.1.1", "fe80::1"]
    assert sorted(addresses, key=nodes._numbers) == ["fe80::1", "10.0.0.9", "10.0.0.10", "10.0.1.1"]
