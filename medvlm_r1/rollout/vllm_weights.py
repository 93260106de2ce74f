"""The policy's weights on their way to a vLLM server."""

import base64
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from medvlm_r1.policy.policy import Policy
from medvlm_r1.policy.saving.merge import merged_weights
from medvlm_r1.rollout.vllm_client import VLLMClient

_SHARD = 2**30  # bytes of weights in one file or request
_MEMORY = Path("/dev/shm")
Weights = Iterator[tuple[str, Tensor]]


class WeightTransfer(Protocol):
    """Replaces weights of a running server; names are those of a checkpoint."""

    def send(self, client: VLLMClient, weights: Weights) -> None: ...
    def close(self) -> None: ...


def sampling_weights(policy: Policy, everything: bool) -> Weights:
    """Weights to sample from, adapter added; without ``everything`` only those of the trained parts.

    vLLM fuses projections and loads a fused layer as a whole, so a part, vision tower or language model, is
    sent whole. The head comes even if it is tied to the embeddings: on a CPU, vLLM keeps a copy of it in
    another layout, which only weights of its own replace.
    """
    for name, value in merged_weights(policy.sampling_model):
        if everything or not (policy.tower_is_frozen and ".visual." in name):
            yield name, value
    if policy.head_weight is policy.sampling_model.get_input_embeddings().weight:
        yield "lm_head.weight", policy.head_weight.detach().clone()


def shards(weights: Weights) -> Iterator[dict[str, Tensor]]:
    """Group weights into parts of about :data:`_SHARD` bytes, in their order."""
    shard: dict[str, Tensor] = {}
    for name, value in weights:
        shard[name] = value.contiguous()
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard


class FolderTransfer:
    """Safetensors files that the server reads, on any device; the server must see the folder.

    The files exist only while the server starts or takes an update.

    Args:
        parent: of the folder; by default shared memory if it has room, else the temporary folder.
        size: bytes of the weights of all ranks that write.
    """

    def __init__(self, parent: Path | None, size: int) -> None:
        if parent is None and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 2 * size:
            parent = _MEMORY
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        self._owner = tempfile.TemporaryDirectory(prefix="medvlm_r1-weights-", dir=parent)
        self.folder = Path(self._owner.name)

    @contextmanager
    def files(self, weights: Weights) -> Iterator[Path]:
        """Write the weights into the folder, and delete the files after the block."""
        try:
            for number, shard in enumerate(shards(weights)):
                save_file(shard, self.folder / f"model-{number:05}.safetensors")
            yield self.folder
        finally:
            for file in self.folder.glob("*.safetensors"):
                file.unlink()

    def send(self, client: VLLMClient, weights: Weights) -> None:
        with self.files(weights) as folder:
            arguments = {"weights_path": str(folder)}
            client.post("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})

    def close(self) -> None:
        self._owner.cleanup()


class NCCLTransfer:
    """NCCL broadcasts to a server on other GPUs, by vLLM's native weight transfer.

    NCCL refuses two processes on one GPU, so this is for ``rollout.url`` alone; the servers need
    ``--weight-transfer-config '{"backend": "nccl"}'``. Written against the source of vLLM 0.32 and not run
    on a GPU yet: tests check the requests alone.
    """

    def __init__(self) -> None:
        self._communicator: Any = None

    def send(self, client: VLLMClient, weights: Weights) -> None:
        communicator = self._communicator = self._communicator or self._connect(client)
        client.post("/start_weight_update")
        for shard in shards(weights):
            with _meanwhile(client, "/update_weights", {"update_info": nccl_update(shard)}):
                for value in shard.values():
                    torch.cuda.nccl.broadcast([value], root=0, comms=[communicator])
        client.post("/finish_weight_update")

    def _connect(self, client: VLLMClient) -> Any:
        """Join the server's workers as rank 0; its ranks join during the request."""
        world_size = 1 + client.get("/get_world_size")["world_size"]
        unique_id = torch.cuda.nccl.unique_id()
        with _meanwhile(
            client, "/init_weight_transfer_engine", {"init_info": nccl_init(unique_id, world_size)}
        ):
            communicator = torch.cuda.nccl.init_rank(world_size, unique_id, 0)
            torch.cuda.nccl.all_reduce([torch.zeros(1, device="cuda")], comms=[communicator])
        return communicator

    def close(self) -> None:
        self._communicator = None


def nccl_init(unique_id: bytes, world_size: int) -> dict[str, Any]:
    """vLLM's ``NCCLWeightTransferInitInfo``: the server's workers are the ranks from 1 on."""
    encoded = base64.b64encode(unique_id).decode()
    return {"nccl_unique_id_b64": encoded, "rank_offset": 1, "world_size": world_size, "packed": False}


def nccl_update(shard: Mapping[str, Tensor]) -> dict[str, Any]:
    """vLLM's ``NCCLWeightTransferUpdateInfo``: the tensors in the order in which they are broadcast."""
    return {
        "names": list(shard),
        "dtype_names": [str(value.dtype).removeprefix("torch.") for value in shard.values()],
        "shapes": [list(value.shape) for value in shard.values()],
    }


@contextmanager
def _meanwhile(client: VLLMClient, path: str, body: dict[str, Any]) -> Iterator[None]:
    """Send a request during the block; both meet in NCCL. Raises the request's error."""
    pool = ThreadPoolExecutor(1)
    try:
        answer = pool.submit(client.post, path, body)
        yield
        answer.result()
    finally:
        pool.shutdown(wait=False)  # after an error the server waits for this process, and would not answer
