"""What a backbone says about sharding is enough for FSDP2: two CPU ranks compute as one does."""

from tests.two_processes import run_as_two_ranks

RANK = """
import copy
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

join()
torch.manual_seed(0)
policy = DVLAPolicy(Sharded(8, 16), UniformBins(16), 2, 4, normalization="identity")
alone = results(copy.deepcopy(policy))
shard(policy.backbone, policy.backbone.sharded_layers)
held = sum(p.to_local().numel() for p in policy.backbone.parameters() if isinstance(p, DTensor))
assert held < 0.6 * sum(p.numel() for p in policy.backbone.parameters())
together = results(policy)
assert torch.equal(alone[0], together[0])
for want, got in zip(alone[1:], together[1:], strict=True):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
"""


def test_two_ranks_that_hold_half_of_the_network_each_compute_the_same(tmp_path):
    run_as_two_ranks(RANK, tmp_path)
