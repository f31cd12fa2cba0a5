"""Each row of the comparison gives the seeds to the decisions that it names."""

from benchmarks import act_seeds
from dvla_lightning.policy import DVLAPolicy


def test_seeds_of_the_decisions(monkeypatch, tiny_policy):
    decide, seeds = DVLAPolicy.decide, []

    def and_note(self, observations, num_steps, seeds_of_batch):
        seeds.extend(seeds_of_batch)
        return decide(self, observations, num_steps, seeds_of_batch)

    monkeypatch.setattr(DVLAPolicy, "decide", and_note)
    assert act_seeds.successes(tiny_policy, 5, None).n == 5
    assert len(seeds) > 5 and len(set(seeds)) == len(seeds)
    seeds.clear()
    act_seeds.successes(tiny_policy, 5, 3)
    assert len(seeds) > 5 and set(seeds) == {3}
