"""Runs a script as two ranks that share a network; `my_backbone` in it is the backbone of docs/backbone.md."""

import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "backbone.md").read_text(), re.DOTALL)[1]
BEGIN = """
import sys
sys.path[:0] = {paths!r}
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

def join():
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=rank, world_size=2)

def shard(backbone, layers):
    for layer in layers:
        fully_shard(layer)
    fully_shard(backbone)
    for name in backbone.forward_methods:
        register_fsdp_forward_method(backbone, name)

rank = int(sys.argv[1])
"""
END = """
dist.barrier()
dist.destroy_process_group()
"""


def run_as_two_ranks(script, folder):
    """Waits until both have ended without an error; `script` knows `rank`, `join()` and `shard(backbone, layers)`."""
    (folder / "my_backbone.py").write_text(CODE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        begin = BEGIN.format(paths=[str(ROOT), str(folder)], port=free.getsockname()[1])
    (folder / "rank.py").write_text(begin + script + END)
    ranks = [subprocess.Popen([sys.executable, folder / "rank.py", str(rank)]) for rank in (0, 1)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
