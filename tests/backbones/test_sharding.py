"""What a backbone says about sharding is enough for FSDP2: two CPU ranks compute as one does."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "backbone.md").read_text(), re.DOTALL)[1]
RANK = """
import copy, sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.diffusion.estimators import Trajectory
from dvla_lightning.policy import DVLAPolicy
from my_backbone import MyBackbone

class Sharded(MyBackbone):
    @property
    def sharded_layers(self):
        return list(self.transformer.layers)

def results(policy):
    seen = [policy.processor.example(number) for number in range(2)]
    decisions = policy.decide(seen, [2, 2], [1, 2])
    views = Trajectory().views(decisions.path, policy.mask_id)
    scores = policy.score(policy.collate(decisions.rows), views)
    scores.log_prob_BSL.sum().backward()
    gradient = policy.backbone.head.weight.grad
    gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return decisions.path.tokens_BL, scores.log_prob_BSL, policy.estimate_values(seen), gradient

rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
torch.manual_seed(0)
policy = DVLAPolicy(Sharded(8, 16), UniformBins(16), 2, 4, normalization="identity")
alone = results(copy.deepcopy(policy))
for layer in policy.backbone.sharded_layers:
    fully_shard(layer)
fully_shard(policy.backbone)
for name in policy.backbone.forward_methods:
    register_fsdp_forward_method(policy.backbone, name)
held = sum(p.to_local().numel() for p in policy.backbone.parameters() if isinstance(p, DTensor))
assert held < 0.6 * sum(p.numel() for p in policy.backbone.parameters())
together = results(policy)
assert torch.equal(alone[0], together[0])
for want, got in zip(alone[1:], together[1:], strict=True):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_ranks_that_hold_half_of_the_network_each_compute_the_same(tmp_path):
    (tmp_path / "my_backbone.py").write_text(CODE)
    (tmp_path / "rank.py").write_text(f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n{RANK}")
    port = str(20000 + hash(str(tmp_path)) % 20000)
    ranks = [subprocess.Popen([sys.executable, tmp_path / "rank.py", str(rank), port]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
