"""The denoising path: what the sampler did, in just enough detail to rebuild and score every state it passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class DenoisingPath:
    """A record of which token was committed at which position in which step.

    Not frozen: Lightning rebuilds dataclasses when it moves a batch.

    Attributes:
        tokens_BL: int64, the decoded chunk x_0, values in [0, V).
        commit_step_BL: int64 in [0, K); step 0 is the first one (the paper counts k = K .. 1). With remasking the step
            of the last commit.
        commit_order_BL: int64 permutation of 0..L-1 per row: the order in which the positions were committed; inside a
            step it is the order of decreasing selection score.
        log_prob_BL: float32, behaviour log-probability of each token in the state in which it was committed.
        num_steps_B: int64, K of each row.
        seed_B: int64, the seed of the row's draws; estimators with random masks derive theirs from it.
        states_BKL: int64, the tokens before each step, MASK where masked; steps beyond a row's K hold its final tokens.
            Only samplers with remasking need it: where commits are permanent, commit_step_BL tells every state.
    """

    tokens_BL: Tensor
    commit_step_BL: Tensor
    commit_order_BL: Tensor
    log_prob_BL: Tensor
    num_steps_B: Tensor
    seed_B: Tensor
    states_BKL: Tensor | None = None

    def __len__(self) -> int:
        return int(self.tokens_BL.shape[0])

    def select(self, rows: Tensor) -> DenoisingPath:
        """The paths of some rows; `rows` is an int64 or bool index of the batch dimension."""
        return self._map(lambda x: x[rows])

    def to(self, device: torch.device | str) -> DenoisingPath:
        """The same paths on another device."""
        return self._map(lambda x: x.to(device))

    def unbind(self) -> list[DenoisingPath]:
        """The paths one by one; they share this one's memory."""
        return [self._map(lambda x, row=row: x[row : row + 1]) for row in range(len(self))]  # type: ignore[misc]

    def _map(self, function: Callable[[Tensor], Tensor]) -> DenoisingPath:
        states_BKL = None if self.states_BKL is None else function(self.states_BKL)
        return DenoisingPath(**{name: function(getattr(self, name)) for name in _PER_ROW}, states_BKL=states_BKL)

    @staticmethod
    def cat(paths: Sequence[DenoisingPath]) -> DenoisingPath:
        """Stacks the rows of several paths of one sampler."""
        columns = {name: torch.cat([getattr(path, name) for path in paths]) for name in _PER_ROW}
        with_states = [(path, path.states_BKL) for path in paths if path.states_BKL is not None]
        if not with_states:
            return DenoisingPath(**columns)
        most = max(states_BKL.shape[1] for _, states_BKL in with_states)
        padding = [path.tokens_BL[:, None].expand(-1, most - states.shape[1], -1) for path, states in with_states]
        padded = [torch.cat([states, pad], dim=1) for (_, states), pad in zip(with_states, padding, strict=True)]
        return DenoisingPath(**columns, states_BKL=torch.cat(padded))


_PER_ROW = [field.name for field in fields(DenoisingPath) if field.name != "states_BKL"]
