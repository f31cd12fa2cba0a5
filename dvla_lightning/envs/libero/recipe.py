"""`Libero`: the options of the benchmark, and facts that are known before a simulator exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from dvla_lightning.envs.base import Environment, SimulatorEnv
from dvla_lightning.envs.libero.options import ACTION_DIM, CAMERAS, PROPRIOCEPTION_DIM, LiberoOptions
from dvla_lightning.envs.libero.preflight import GL_BACKENDS
from dvla_lightning.envs.libero.protocols import PROTOCOLS, GripperName, Protocol, ProtocolName, StateName
from dvla_lightning.envs.libero.suites import INSTALL_REMEDY, NUM_PUBLISHED_STATES, suite_tasks
from dvla_lightning.errors import UserError
from dvla_lightning.versions import installed_version

# Without a protocol: pictures small enough for a CPU, otherwise as OpenVLA-OFT evaluates, with robosuite's gripper.
DEFAULTS = dataclasses.replace(PROTOCOLS["openvla_oft"], image_size=128, gripper="robosuite")

# Options whose names are in an identity only where they are not the default.
LATER = ("protocol", "state", "gripper")

# What a policy trained on the published initial states has seen: every table about it says so.
TRAINED_ON_PUBLISHED = "trained on the published initial states of LIBERO, on which evaluation runs"

T = TypeVar("T")


def _first(given: T | None, otherwise: T) -> T:
    return otherwise if given is None else given


def _choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UserError(f"Libero: {name}={value!r} is not one of: {', '.join(allowed)}")
    return value


class Libero(Environment):
    """The LIBERO benchmark: a Franka arm at a table, 20 control steps per second, sparse reward 1 at success.

    Split "heldout" is the 50 published initial states of a task, which begin anew after trial 49; splits "train" and
    "selection" draw placements from the regions of the task's BDDL file, from random numbers of their own. The number
    of a trial also fixes the furniture, which is not part of a published state: the same number always gives the same
    picture.

    Args:
        suite: libero_spatial, libero_object, libero_goal, libero_10 or libero_90.
        protocol: A published evaluation: "openvla_oft", "lerobot" or "mm_act" (docs/libero.md). It sets image_size,
            rendering, max_steps, num_wait_steps, state, gripper, where the furniture stands, and the number of
            episodes of `data.evaluation.num_episodes: all`. What is given beside it wins.
        assets_dir: Folder with LIBERO's meshes and textures. If not given: the environment variable LIBERO_ASSETS,
            else wherever hf-libero finds or downloads them.
        image_size: Height and width of each image in pixels. If not given: the protocol's, else 128.
        cameras: Images of an observation: "agentview" (third person) and "wrist". An empty list renders nothing.
        rendering: "fast" leaves out antialiasing and reflections, which makes pictures three times cheaper without a
            GPU; "faithful" gives exactly upstream's observations. Use the same setting for demonstrations, training and
            evaluation, and "faithful" for published checkpoints. If not given: faithful with a protocol, else fast.
        reset_mode: "soft" keeps the compiled model between episodes (50 ms), "hard" rebuilds it as upstream does
            (2 s). The states are identical.
        gl_backend: How MuJoCo renders: "egl" (GPU, or Mesa on a CPU), "osmesa" (CPU), or "auto": the environment
            variable MUJOCO_GL, else the first that works.
        max_steps: Control steps after which an episode is truncated, wait not counted. If not given: the protocol's
            limit of the suite, else OpenVLA-OFT's (220, 280, 300, 520, 400).
        num_wait_steps: Control steps with open gripper at the beginning, while objects settle (published: 10).
        state: Proprioception, 8 numbers: "hand" is position (3, m), axis-angle (3, rad) and finger joints (2, m);
            "joints" is arm joints (7, rad) and the first finger joint (m). If not given: the protocol's, else hand.
        gripper: Seventh number of an action: "robosuite" is -1 open to +1 closed; "rlds" is 1 open and 0 closed, and
            only which of them is nearer counts. If not given: the protocol's, else robosuite.
        train_on_published_states: Split "train" takes the 50 published initial states, too, in turn. Evaluation on
            them is then no test any more, and every table about the policy says so.
        interpreter: Python 3.10 or newer in which workers run LIBERO, for pins that cannot live beside this package.
            It needs hf-libero and gymnasium, but not this package. If not given: this Python.
    """

    machine_options = ("interpreter", "assets_dir", "gl_backend")

    def __init__(
        self,
        suite: str = "libero_spatial",
        protocol: ProtocolName | None = None,
        assets_dir: str | None = None,
        image_size: int | None = None,
        cameras: Sequence[str] = ("agentview", "wrist"),
        rendering: Literal["fast", "faithful"] | None = None,
        reset_mode: Literal["soft", "hard"] = "soft",
        gl_backend: Literal["auto", "egl", "osmesa"] = "auto",
        max_steps: int | None = None,
        num_wait_steps: int | None = None,
        state: StateName | None = None,
        gripper: GripperName | None = None,
        train_on_published_states: bool = False,
        interpreter: str | None = None,
    ) -> None:
        self.tasks = tuple(suite_tasks(suite))
        self.suite = suite
        self.protocol = None if protocol is None else _choice("protocol", protocol, tuple(PROTOCOLS))
        rules = self.rules or DEFAULTS
        self.assets_dir = assets_dir
        self.image_size = _first(image_size, rules.image_size)
        self.cameras = tuple(_choice("cameras", camera, tuple(CAMERAS)) for camera in cameras)
        rendering = rendering or ("fast" if protocol is None else "faithful")
        self.rendering = _choice("rendering", rendering, ("fast", "faithful"))
        self.reset_mode = _choice("reset_mode", reset_mode, ("soft", "hard"))
        self.gl_backend = _choice("gl_backend", gl_backend, ("auto", *GL_BACKENDS))
        self.max_steps = _first(max_steps, rules.max_steps[suite])
        self.num_wait_steps = _first(num_wait_steps, rules.num_wait_steps)
        self.state = _choice("state", state or rules.state, ("hand", "joints"))
        self.gripper = _choice("gripper", gripper or rules.gripper, ("robosuite", "rlds"))
        self.train_on_published_states = train_on_published_states
        self.interpreter = interpreter
        self.action_dim, self.proprioception_dim = ACTION_DIM, PROPRIOCEPTION_DIM
        if self.image_size < 1 or self.max_steps < 1 or self.num_wait_steps < 0:
            raise UserError("Libero: image_size and max_steps must be at least 1, num_wait_steps at least 0")

    @property
    def rules(self) -> Protocol | None:
        """The protocol's constants."""
        return None if self.protocol is None else PROTOCOLS[self.protocol]

    def make(self) -> SimulatorEnv:
        """Builds the simulator in this process; see `Environment.make`."""
        _require_versions()
        from dvla_lightning.envs.libero.env import LiberoEnv  # here: its constructor prepares GL and imports MuJoCo

        names = [option.name for option in dataclasses.fields(LiberoOptions)]
        return LiberoEnv(LiberoOptions(**{name: getattr(self, name) for name in names}))

    def num_heldout_states(self, task: str) -> None:
        """None, for no limit: from trial 50 on the published states begin anew, with other furniture places."""
        self.select_tasks(task)

    def num_trials(self, task: str) -> int:
        """Episodes per task of the protocol; all 50 published initial states without one."""
        self.select_tasks(task)
        return NUM_PUBLISHED_STATES if self.rules is None else self.rules.num_trials

    def identity(self) -> Mapping[str, Any]:
        """Suite, protocol, options that change states or pixels, and the simulator's versions.

        Options that came later are named only where they differ from what was there before, so that data sets of
        older releases can be continued.
        """
        names = ("suite", "image_size", "cameras", "rendering", "reset_mode", "max_steps", "num_wait_steps")
        packages = ("hf-libero", "mujoco", "robosuite")
        return {
            "class": type(self).__name__,
            **{name: getattr(self, name) for name in names},
            **{name: value for name in LATER if (value := getattr(self, name)) != getattr(DEFAULTS, name, None)},
            **({"training_remark": TRAINED_ON_PUBLISHED} if self.train_on_published_states else {}),
            # Those of another interpreter are not known here.
            "versions": None if self.interpreter else {package: installed_version(package) for package in packages},
        }


def _require_versions() -> None:
    """Raises UserError for simulator versions that are known not to work."""
    mujoco, robosuite = installed_version("mujoco"), installed_version("robosuite")
    if mujoco is None or robosuite is None:
        missing = "mujoco" if mujoco is None else "robosuite"
        raise UserError(f"LIBERO needs the package {missing}, which is not installed: {INSTALL_REMEDY}")
    # MuJoCo 4 split its package and robosuite 1.4 cannot import it; hf-libero 0.1.4 declares mujoco<3.9.
    if tuple(int(part) for part in mujoco.split(".")[:2]) >= (3, 9):
        raise UserError(f"LIBERO does not run with mujoco {mujoco}: pip install 'mujoco<3.9'")
    if not robosuite.startswith("1.4."):  # single_arm_env is gone in 1.5
        raise UserError(f"LIBERO does not run with robosuite {robosuite}: pip install --no-deps robosuite==1.4.0")
