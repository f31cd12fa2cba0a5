"""Two ranks that share one network make equally many passes in an update, whatever K their decisions have."""

from tests.two_processes import run_as_two_ranks

RANK = """
import copy, dataclasses
from dvla_lightning.actions.tokenizer import UniformBins
from dvla_lightning.envs.tabletop import Tabletop
from dvla_lightning.objectives import TrajectoryPPO
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import EpisodeSpec
from my_backbone import MyBackbone
from tests.small_policy import whole_batch

torch.manual_seed(0)
policy = DVLAPolicy(MyBackbone(8, 16, dim=16), UniformBins(16), 2, 4, normalization="identity")
objective, batches = TrajectoryPPO(), []
for each, steps in enumerate(([1, 1, 1], [4, 1, 2])):  # one K on the first rank, three on the second
    specs = [EpisodeSpec("reach", "train", 3 * each + n, seed=n, num_steps=k) for n, k in enumerate(steps)]
    episodes = Collector(Tabletop(), num_envs=3, progress=False).run(policy, specs)
    batch = whole_batch(policy, objective, episodes)
    batches.append(dataclasses.replace(batch, advantages_B=torch.randn(len(batch)), num_passes=3))

def gradient(policy, batch):
    policy.zero_grad()
    objective(policy, batch).loss.backward()
    return {name: p.grad for name, p in policy.backbone.named_parameters() if p.grad is not None}

alone = [gradient(copy.deepcopy(policy), batch) for batch in batches]
plain = gradient(copy.deepcopy(policy), dataclasses.replace(batches[0], num_passes=0))
assert all(torch.equal(x, plain[name]) for name, x in alone[0].items())  # passes of weight 0 change nothing

join()
shard(policy.backbone, policy.backbone.transformer.layers)
assert policy.is_sharded
together = gradient(policy, batches[rank])
assert together.keys() == alone[0].keys()
for name, x in together.items():
    torch.testing.assert_close(x.full_tensor(), (alone[0][name] + alone[1][name]) / 2, rtol=0, atol=1e-6)
"""


def test_ranks_whose_decisions_have_different_k_update_together(tmp_path):
    run_as_two_ranks(RANK, tmp_path)
