"""`LiberoEnv`: one LIBERO simulator that serves every task of a suite."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dvla_lightning.envs.base import SPLITS, Observation, SimulatorEnv
from dvla_lightning.envs.libero.assets import require_assets
from dvla_lightning.envs.libero.launch import build_simulator, import_libero
from dvla_lightning.envs.libero.options import ACTION_DIM, CAMERAS, PROPRIOCEPTION_DIM, LiberoOptions
from dvla_lightning.envs.libero.states import InitialStates, global_random_state
from dvla_lightning.envs.libero.suites import Task, suite_tasks
from dvla_lightning.errors import UserError

if TYPE_CHECKING:
    from dvla_lightning.envs.libero.cameras import Cameras
    from dvla_lightning.envs.libero.expert.scripted import Expert
    from dvla_lightning.envs.libero.physics import Snapshot

WAIT_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])  # gripper open; the published evaluations' no-op

DEFAULT_OPTIONS = {"split": "train", "initial_state": 0, "expert_attempt": 0, "expert_noise": 0.0}

RENDER_SIZE = 480  # pixels, for people

NOT_RESET = "LiberoEnv: call reset() first"


class _Scene(NamedTuple):
    """The simulator of one task; `control` is LIBERO's ControlEnv."""

    task: Task
    control: Any
    states: InitialStates


class LiberoEnv(SimulatorEnv):
    """LIBERO as a `SimulatorEnv`; the simulator of a task is built at its first reset and kept until the task changes.

    Args:
        options: what the recipe was given, complete.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[misc]
    render_mode = "rgb_array"

    def __init__(self, options: LiberoOptions) -> None:
        import_libero(options.gl_backend, require_assets(options.assets_dir, options.suite))
        self.options = options
        self._faithful = options.rendering == "faithful"
        self._scene: _Scene | None = None
        self._cameras: Cameras | None = None
        self._snapshot: Snapshot | None = None
        self._expert: Expert | None = None
        self._num_steps = 0
        self._limit = options.max_steps
        size = options.image_size
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        low = np.full(ACTION_DIM, -1.0, np.float32)
        low[6] = 0.0 if options.gripper == "rlds" else -1.0
        self.action_space = gymnasium.spaces.Box(low, np.ones_like(low), dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            images=gymnasium.spaces.Dict(dict.fromkeys(options.cameras, image)),
            proprioception=gymnasium.spaces.Box(-np.inf, np.inf, (PROPRIOCEPTION_DIM,), np.float32),
            instruction=gymnasium.spaces.Text(200, charset=string.printable),
        )

    # ------------------------------------------------------------------ the episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Puts the scene into an initial state and waits until it rests; options as in `SimulatorEnv`.

        Raises:
            UserError: for an unknown task or split, or an initial state that does not exist.
        """
        super().reset(seed=seed)
        options = {"task": next(iter(suite_tasks(self.options.suite))), **DEFAULT_OPTIONS, **(options or {})}
        number = self._check(**options)
        self._select_task(options["task"]).states.place(options["split"], number)
        self._limit = self.options.max_steps
        for _ in range(self.options.num_wait_steps):
            self._step_physics(WAIT_ACTION)
        self._num_steps = 0
        self._start_expert(options["expert_attempt"], options["expert_noise"])
        return self.observe(), {"is_success": self._is_success()}

    def advance(self, action: NDArray[np.float32]) -> tuple[float, bool, bool, dict[str, Any]]:
        """Runs one control step (50 ms) without rendering; see `SimulatorEnv.advance`."""
        self._require_reset()
        clipped = np.clip(np.asarray(action, np.float64), self.action_space.low, self.action_space.high)
        if clipped.shape != (ACTION_DIM,):
            raise UserError(f"LIBERO takes actions of shape ({ACTION_DIM},), not {clipped.shape}")
        if self.options.gripper == "rlds":
            clipped[6] = np.sign(1.0 - 2.0 * clipped[6])
        self._step_physics(clipped)
        self._num_steps += 1
        success = self._is_success()
        truncated = not success and self._num_steps >= self._limit
        return float(success), success, truncated, {"is_success": success}

    def step_chunk(self, actions: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Runs a chunk; see `SimulatorEnv.step_chunk` and `Protocol.finishes_chunks`."""
        if self.options.rules is not None and self.options.rules.finishes_chunks:
            self._limit = max(self.options.max_steps, self._num_steps + len(actions))
        return super().step_chunk(actions)

    def observe(self) -> Observation:
        """Renders the cameras and reads the robot's state; see `SimulatorEnv.observe`."""
        task = self._require_reset().task
        # Left and right are mirrored: the "180 degrees" convention of the LIBERO data sets and of all VLAs trained on
        # them turns OpenGL's upside-down picture by half a turn instead of flipping it.
        images = {
            name: np.ascontiguousarray(self._picture(CAMERAS[name], self.options.image_size)[:, ::-1])
            for name in self.options.cameras
        }
        return Observation(images=images, proprioception=self._proprioception(), instruction=task.instruction)

    def expert_action(self) -> NDArray[np.float32]:
        """The scripted expert's next action; see `SimulatorEnv.expert_action`."""
        if self._expert is None:
            raise UserError(NOT_RESET)
        action = self._expert.action()
        if self.options.gripper == "rlds":
            action[6] = (1.0 - action[6]) / 2.0
        return action

    def render(self) -> NDArray[np.uint8]:
        """Draws a larger picture for people, (480, 480, 3) uint8, upright and not mirrored."""
        self._require_reset()
        return self._picture("agentview", RENDER_SIZE)

    def close(self) -> None:
        """Closes the simulator; a later reset builds it again."""
        if self._cameras is not None:
            self._cameras.close()
        if self._scene is not None:
            self._scene.control.close()
        self._scene = self._cameras = self._snapshot = self._expert = None

    # ------------------------------------------------------------------ states

    def _require_reset(self) -> _Scene:
        if self._scene is None:
            raise UserError(NOT_RESET)
        return self._scene

    def _check(
        self,
        task: str,
        split: str,
        initial_state: int,
        expert_attempt: int,
        expert_noise: float,
        **unknown: Any,
    ) -> int:
        if task not in (tasks := suite_tasks(self.options.suite)):
            raise UserError(f"LIBERO: unknown task {task!r}; choose from: {', '.join(tasks)}")
        if unknown:
            raise UserError(f"LIBERO has no reset option {next(iter(unknown))!r}")
        if expert_attempt < 0 or not 0.0 <= expert_noise < np.inf:
            raise UserError(
                f"LIBERO: expert_attempt={expert_attempt} and expert_noise={expert_noise} must be 0 or more"
            )
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}; choose from: {', '.join(SPLITS)}")
        if initial_state < 0:
            raise UserError(f"LIBERO has no {split} initial state {initial_state}; they are numbered from 0")
        return int(initial_state)

    def _select_task(self, name: str) -> _Scene:
        if self._scene is not None and self._scene.task.name == name:
            return self._scene
        self.close()
        task = suite_tasks(self.options.suite)[name]
        with global_random_state(0):
            control = build_simulator(task.bddl, hard_reset=self.options.reset_mode == "hard")
        states = InitialStates(control, task, self.options.rules, self.options.train_on_published_states)
        self._scene = _Scene(task, control, states)
        if self._faithful:
            from dvla_lightning.envs.libero.physics import Snapshot

            self._snapshot = Snapshot(self._domain)
        return self._scene

    @property
    def _domain(self) -> Any:
        """Robosuite's environment inside LIBERO's wrapper."""
        return self._require_reset().control.env

    def _step_physics(self, action: NDArray[np.float64]) -> None:
        if self._faithful:
            self._domain.step(action)
            return
        from dvla_lightning.envs.libero.physics import control_step

        control_step(self._domain, action)

    def _is_success(self) -> bool:
        return bool(self._domain._check_success())

    def _start_expert(self, attempt: int, noise: float) -> None:
        from dvla_lightning.envs.libero.expert.scripted import Expert

        self._expert = Expert(self._domain, attempt=attempt, noise=noise, rng=self.np_random)

    # ------------------------------------------------------------------ what is seen

    def _picture(self, camera: str, size: int) -> NDArray[np.uint8]:
        from dvla_lightning.envs.libero.cameras import Cameras

        model = self._domain.sim.model._model
        if self._cameras is None or self._cameras.model is not model:  # a hard reset compiled a new one
            if self._cameras is not None:
                self._cameras.close()
            self._cameras = Cameras(model, self._faithful)
        data = self._snapshot.data if self._snapshot else self._domain.sim.data._data
        return self._cameras.picture(data, camera, size)

    def _proprioception(self) -> NDArray[np.float32]:
        sim, robot = self._domain.sim, self._domain.robots[0]
        data = self._snapshot.data if self._snapshot else sim.data._data
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        if self.options.state == "joints":
            return np.concatenate([data.qpos[robot._ref_joint_pos_indexes], fingers[:1]]).astype(np.float32)
        position = data.site_xpos[robot.eef_site_id]
        w, x, y, z = data.xquat[sim.model.body_name2id(robot.robot_model.eef_name)]
        return np.concatenate([position, _axis_angle(w, np.array([x, y, z])), fingers]).astype(np.float32)


def _axis_angle(w: float, xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axis times angle in [0, 2 pi] of a quaternion, (3,); not wrapped to pi, as in LIBERO's data sets."""
    sine = np.sqrt(max(0.0, 1.0 - w * w))
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return xyz * (2.0 * np.arccos(np.clip(w, -1.0, 1.0)) / sine)
