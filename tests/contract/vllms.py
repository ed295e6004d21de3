"""Which vLLM is asked, its receivers, and its RPC."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.contract.weights import Model
from tests.contract.wire import Communicator, claiming


def choose(sources: str) -> str:
    """Takes vLLM's Python from the folder `sources`, compiled parts from the installed vLLM; or all
    from there if `sources` is empty. Returns where vLLM's receivers come from."""
    if sources:
        installed = _installed()
        sys.path.insert(0, str(Path(sources).resolve().parent))
        import vllm
        import vllm.platforms
        from vllm.platforms.cpu import CpuPlatform

        vllm.__path__.append(installed)
        # vLLM would tell it from the version of a package that is not installed.
        vllm.platforms.current_platform = CpuPlatform()
    from vllm.distributed import weight_transfer

    return str(Path(weight_transfer.__file__).parent)


def _installed() -> str:
    from importlib.util import find_spec

    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    return spec.submodule_search_locations[0]


def install() -> None:
    """Puts the stand-ins into vLLM, in this process for good."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.model_executor.model_loader import reload

    pynccl.PyNcclCommunicator = Communicator
    StatelessProcessGroup.create = staticmethod(claiming(StatelessProcessGroup.create))
    # vLLM's own layers are not built here: the model takes what it is given.
    reload.initialize_layerwise_reload = lambda model: None
    reload.finalize_layerwise_reload = lambda model, config: None


def receiver(kind: Any, tensor_parallel: int, rank: int, device: Any = None) -> Any:
    """vLLM's receiver in worker `rank` of an engine."""
    parallel = SimpleNamespace(
        rank=rank, world_size=tensor_parallel, data_parallel_index=0, data_parallel_rank=0
    )
    config = SimpleNamespace(parallel_config=parallel, model_config=None)
    return kind(SimpleNamespace(), config, device or torch.device("cpu"), Model())


def over_rpc(method: str, **arguments: Any) -> dict[str, Any]:
    """The keyword arguments as the worker gets them, through vLLM's own encoding."""
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    assert os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    sent = MsgpackEncoder().encode((0, 0, "collective_rpc", (method, None, (), arguments)))
    return MsgpackDecoder().decode(sent)[3][3]
