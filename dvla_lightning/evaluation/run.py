"""Runs the episodes of an evaluation, keeps their manifest, and goes on with one that was interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dvla_lightning.errors import UserError
from dvla_lightning.evaluation.header import Header
from dvla_lightning.evaluation.manifest import Manifest
from dvla_lightning.evaluation.ranks import gather_or_raise
from dvla_lightning.evaluation.records import EpisodeKey, EpisodeRecord, one_per_episode
from dvla_lightning.evaluation.videos import save_video
from dvla_lightning.policy import DVLAPolicy
from dvla_lightning.rollout.collector import Collector
from dvla_lightning.rollout.episode import Episode, EpisodeSpec


class EvaluationRun:
    """One evaluation, as one rank sees it.

    Args:
        collector: runs the episodes.
        policy: in eval mode, on its device.
        videos: folder for videos of the episodes with pictures; None makes none.

    Attributes:
        header: of the manifest; None if none is kept.
        records: of this rank's episodes, and of all that were recorded before.
        pictured: success or not -> one episode with its pictures, of those that this rank ran.
    """

    def __init__(self, collector: Collector, policy: DVLAPolicy, videos: Path | None = None) -> None:
        self.collector, self.policy, self.videos = collector, policy, videos
        self.header: Header | None = None
        self.records: dict[EpisodeKey, EpisodeRecord] = {}
        self.pictured: dict[bool, Episode] = {}
        self._manifest: Manifest | None = None

    def keep_manifest(self, directory: Path, header: Header, rank: int) -> None:
        """Records every episode from now on; those recorded before are not run again. Every rank must call it.

        Raises:
            UserError: if the directory cannot be used, on every rank.
        """
        outcome: dict[EpisodeKey, EpisodeRecord] | UserError
        try:
            manifest = self._manifest = Manifest(directory, header, rank)
            outcome = manifest.found
        except UserError as error:
            outcome = error
        # Where ranks share no file system, each knows only its own episodes.
        found = gather_or_raise(outcome)
        self.records = one_per_episode(record for part in found for record in part.values())
        self.header = header
        gather_or_raise(self._begin(manifest))
        if self.records and rank == 0:
            done = sum(record.error is None for record in self.records.values())
            print(f"{done} episodes are in {manifest.path} already and are not run again", flush=True)

    def _begin(self, manifest: Manifest) -> UserError | None:
        try:
            manifest.begin()
        except UserError as error:
            return error
        return None

    def run(
        self, specs: Sequence[EpisodeSpec], title: str, before_decision: Callable[[], None] | None = None
    ) -> list[EpisodeRecord]:
        """Runs the episodes that are not recorded yet, and those that ended in an error before.

        Args:
            specs: this rank's share.
            title: shown on the progress bar.
            before_decision: called before every batch of decisions; it may raise to end the evaluation.

        Returns:
            One record per spec, in the order of `specs`.
        """
        missing = [spec for spec in specs if not self._is_done(spec)]
        try:
            self.collector.run(
                self.policy, missing, title, before_decision, keep_decisions=False, on_episode=self._keep
            )
        except UserError:
            raise
        except BaseException:  # Ctrl-C, or the end of a job's time
            self._tell_how_to_continue(specs)
            raise
        return [self.records[EpisodeKey(spec.task, spec.initial_state)] for spec in specs]

    def close(self) -> None:
        """Releases the manifest."""
        if self._manifest is not None:
            self._manifest.close()

    def _is_done(self, spec: EpisodeSpec) -> bool:
        record = self.records.get(EpisodeKey(spec.task, spec.initial_state))
        return record is not None and record.error is None

    def _keep(self, episode: Episode) -> None:
        record = EpisodeRecord.of(episode)
        if self.videos is not None and episode.spec.pictures and episode.error is None:
            save_video(self.videos, episode)  # before the record: what is recorded is not run again
        _drop_pictures(self._keep_one_of_each_outcome(episode))
        self.records[record.key] = record
        if self._manifest is not None:
            self._manifest.append(record)

    def _keep_one_of_each_outcome(self, episode: Episode) -> Episode | None:
        """The episode with the lower key stays in `pictured`, in whatever order they end; returns the other one."""
        if not episode.spec.pictures or episode.error is not None:
            return episode
        known = self.pictured.get(episode.success)
        if known is not None and EpisodeRecord.of(known).key < EpisodeRecord.of(episode).key:
            return episode
        self.pictured[episode.success] = episode
        return known

    def _tell_how_to_continue(self, specs: Iterable[EpisodeSpec]) -> None:
        if self._manifest is not None:
            done = [self._is_done(spec) for spec in specs]
            print(
                f"\nstopped: {sum(done)} of {len(done)} episodes are in {self._manifest.path}; the same command "
                "runs the others",
                file=sys.stderr,
                flush=True,
            )


def _drop_pictures(episode: Episode | None) -> None:
    """Frees memory: the collector holds all episodes until the last one ends."""
    for transition in episode.transitions if episode is not None else []:
        transition.picture = transition.observation = None
