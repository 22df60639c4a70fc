"""The coupling measurements of one joint and one sequential set, kept as CSV files below `<results>/coupling/`.

The quantities are those of `seqmatch_lib.coupling`; here they are taken of finished runs. Beside the tables lies `sets.json`,
which says of which sets they are, and what code measured them on what machine; older measurements may be without it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from seqmatch_lib import coupling
from seqmatch_lib.data.datasets import Split
from seqmatch_lib.engine.evaluation import train_staged
from seqmatch_lib.engine.training import TrainingRecipe
from seqmatch_lib.errors import StorageError, require
from seqmatch_lib.methods import Stage
from seqmatch_lib.methods.teachers import TrajectorySet, record_stage_teachers
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.experiment import choose_device, open_run
from seqmatch_lib.runs.order import independent_parts, with_first_repeated, with_independent_parts
from seqmatch_lib.runs.provenance import describe_provenance
from seqmatch_lib.runs.real_data import RealData
from seqmatch_lib.runs.records import RunRecord, load_record, record_path
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.files import read_json, write_json, write_text
from seqmatch_lib.subsets import SubsetSequence, load_sequence, sample_real_subset, set_path

SETS = "sets.json"
TABLES = (
    "gradients", "real_gradients", "errors", "unseen_errors", "real_errors", "training_errors", "losses", "control_losses",
    "deciles", "selected_deciles", "control_deciles", "subsets",
)  # fmt: skip
ONE_SET_LONGER, FIRST_REPEATED, PARTS_IN_PLACE = "MTT, as many epochs", "$S_1$ repeated", "independent halves"
COUPLING_CONTROLS = (ONE_SET_LONGER, FIRST_REPEATED, PARTS_IN_PLACE)
SELECTED = "SeqMatch, selected iterate"
FOLLOWED_EPOCHS = 4  # of real training, in which easy and hard images are told apart
FEW_TEACHERS = 5  # of the measurements as K grows
GRADIENT_TEACHERS = 3  # of the gradients
RETRAINED_TEACHERS = 1  # of real training with other batches: an epoch of real training takes long
UNSEEN_TEACHERS = 3  # of the matching error, besides those that the sets were distilled with


def load_coupling(run_id: str, results_dir: Path) -> dict[str, pd.DataFrame]:
    """Reads the measurements of a sequence.

    Args:
        run_id: of the SeqMatch run.
        results_dir: of all records.

    Returns:
        gradients and real_gradients: `ipc`, `match`, `coupling`, `repair_share`, `start epoch`, `teacher`;
        errors, unseen_errors, real_errors and training_errors: `epoch`, `teacher`, `error`, `set`;
        losses and control_losses: `training`, `step`, `images` ("easy" or "hard"), `loss`, `rate`;
        deciles, selected_deciles and control_deciles: `decile`, `accuracy`, `after`, `network`;
        subsets: `K`, `teacher`, `coupling_of_earlier`, `repair_by_last`, `accuracy`. Those that were not measured are missing.

    Raises:
        StorageError: nothing was measured of it.
    """
    folder = results_dir / "coupling" / run_id
    measured = [name for name in TABLES if (folder / f"{name}.csv").is_file()]
    require(bool(measured), f"{folder} has no measurements; run 01_coupling_issue with compute = True", StorageError)
    return {name: read_table(folder / f"{name}.csv") for name in measured}


def read_table(path: Path) -> pd.DataFrame:
    """Reads one measurement. Older ones by difficulty are of one network, and do not say so: it is number 0."""
    table = pd.read_csv(path)
    return table.assign(network=0) if "decile" in table and "network" not in table else table


def find_table(run: RunRecord, name: str, results_dir: Path) -> Path | None:
    """Returns the file of a table of a run's set; None if it is not there, or of another set, of which a notice tells."""
    path = results_dir / "coupling" / run.run_id / f"{name}.csv"
    if not path.is_file():
        return None
    noted = path.parent / SETS
    sets = read_json(noted)["sets"] if noted.is_file() else {}
    if sets.get(run.run_id, run.synthetic_sha256) == run.synthetic_sha256:
        return path
    problem = f"{path} was measured on another set than that of {run.run_id} here"
    print(f"notice: left out: {problem}; delete {path.parent}", file=sys.stderr)
    return None


def measure_coupling(
    joint: RunConfig,
    sequential: RunConfig,
    divided: Sequence[RunConfig],
    results_dir: Path,
    tables: Sequence[str] = TABLES,
) -> dict[str, pd.DataFrame]:
    """Measures the coupling in finished runs of MTT, and keeps the tables; returns them as `load_coupling` does.

    A table that is there already is not measured again, so a stopped call goes on.

    Args:
        joint: run of one set.
        sequential: run of a sequence of as many images.
        divided: runs of sequences with other K; the table `subsets` is of these and of `sequential`.
        results_dir: where all of them were run, with their sets. Those of `order.independent_parts` are a control only if
            they are there.
        tables: which to measure; those of losses and deciles need no teachers. `selected_deciles` is left out where the run
            has kept no other set than the last.

    Raises:
        ConfigError: an unknown table.
        StorageError: a run has left no set there, or tables that are there are of other sets.
    """
    pair = _Pair(joint, sequential, divided, results_dir)
    unknown = [name for name in tables if name not in TABLES]
    require(not unknown, f"tables {unknown} are unknown; use any of {', '.join(TABLES)}")
    folder = results_dir / "coupling" / sequential.run_id
    missing = [name for name in tables if not (folder / f"{name}.csv").is_file()]
    if "selected_deciles" in missing and pair.selected is None:
        missing.remove("selected_deciles")
    parts = _finished_parts(sequential, results_dir) if any(name.startswith("control") for name in missing) else []
    _note_sets(folder, joint, (joint, sequential, *divided, *parts), results_dir, missing)
    for name in missing:
        write_text(folder / f"{name}.csv", getattr(pair, name)().round(6).to_csv(index=False))
    return load_coupling(sequential.run_id, results_dir)


def _finished_parts(config: RunConfig, results_dir: Path) -> list[RunConfig]:
    """Returns the runs of the independent parts of a sequence, or none if one of them has no set."""
    parts = independent_parts(config)
    return parts if all(set_path(results_dir, part.run_id).is_file() for part in parts) else []


def _note_sets(
    folder: Path, joint: RunConfig, configs: Sequence[RunConfig], results_dir: Path, missing: Sequence[str]
) -> None:
    """Notes which sets are measured, and by what code the missing tables are.

    Raises:
        StorageError: the tables that are there are of other sets.
    """
    path, tables = folder / SETS, dict.fromkeys(missing, describe_provenance(choose_device()))
    sets = {config.run_id: load_sequence(set_path(results_dir, config.run_id)).sha256() for config in configs}
    if path.is_file():
        noted = read_json(path)
        changed = [name for name, digest in sets.items() if noted["sets"].get(name, digest) != digest]
        if noted["joint"] != joint.run_id:
            changed.append(noted["joint"])
        problem = f"{folder} was measured on another set of {', '.join(changed)}, or of another run of the base method"
        require(not changed, f"{problem}; delete it to measure again", StorageError)
        sets, tables = noted["sets"] | sets, noted.get("tables", {}) | tables
    elif any(folder.glob("*.csv")):  # of before this was noted
        return
    write_json(path, {"joint": joint.run_id, "sets": sets, "tables": tables})


@dataclass(frozen=True)
class _Pair:
    """A joint and a sequential set of one data set, and what is measured of both: a method for each of `TABLES`."""

    joint_config: RunConfig
    config: RunConfig
    divided: Sequence[RunConfig]
    results_dir: Path

    @cached_property
    def joint(self) -> tuple[SubsetSequence, Stage]:
        _, sequence, (stage,) = open_run(self.joint_config, self.results_dir)
        return sequence, stage

    @cached_property
    def sequence(self) -> tuple[RealData, SubsetSequence, list[Stage]]:
        return open_run(self.config, self.results_dir)

    def network(self, *purpose: str) -> nn.Module:
        return self.joint[1].make_network(self.config.seed, *purpose)

    def gradients(self) -> pd.DataFrame:
        """How the gradient of half of one set depends on the other half, at three segments of each of a few teachers."""
        return self._gradients([self.joint[0].union()] * GRADIENT_TEACHERS)

    def real_gradients(self) -> pd.DataFrame:
        """The same for random real images with the step size of the set; each teacher gets other images."""
        (sequence, stage), ipc = self.joint, self.joint_config.ipc
        given, lr = (stage.images, stage.labels, stage.num_classes, ipc), sequence.subsets[0].lr
        draws = [
            sample_real_subset(*given, lr, self.config.seed, "coupling", ipc, teacher) for teacher in range(GRADIENT_TEACHERS)
        ]
        return self._gradients([(draw.images, draw.labels) for draw in draws])

    def _gradients(self, sets: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> pd.DataFrame:
        """Measures a set of images and labels at each teacher."""
        sequence, stage = self.joint
        mtt, ipc = self.joint_config.options, self.joint_config.ipc
        teachers = _record_some(stage, len(sets))
        last = self.joint_config.intervals[0][1] - mtt.expert_epochs
        epochs = sorted({0, last // 2, last})
        match = (mtt.syn_steps, sequence.subsets[0].lr, mtt.engine)
        frames = []
        for teacher, (images, labels) in enumerate(sets):
            segments = [teachers.segment(teacher, epoch, epoch + mtt.expert_epochs) for epoch in epochs]
            matches = [coupling.MatchingLoss(self.network("coupling"), segment, *match) for segment in segments]
            frame = coupling.coupling_of_subsets(matches, images, labels, stage.num_classes, range(2, ipc + 1, 2))
            starts = frame["match"].map(dict(enumerate(epochs)))
            frames.append(frame.assign(**{"start epoch": starts, "teacher": teacher}))
        return pd.concat(frames, ignore_index=True)

    def errors(self) -> pd.DataFrame:
        """The matching error along the training of teachers; later subsets are measured on the teachers of their own stage."""
        (joint, stage), (_, sequence, stages) = self.joint, self.sequence
        first, second = record_stage_teachers(stage), record_stage_teachers(stages[1])
        cases = {
            f"MTT, {self.joint_config.ipc} images": (first, joint),
            "$S_1$": (first, SubsetSequence(sequence.subsets[:1])),
            "$S_1 \\cup S_2$, after $S_1$": (second, SubsetSequence(sequence.subsets[:2])),
            f"{FIRST_REPEATED}, after $S_1$": (second, SubsetSequence(with_first_repeated(sequence).subsets[:2])),
        }
        return self._errors(cases)

    def unseen_errors(self) -> pd.DataFrame:
        """The same for one set and S_1 at further teachers of stage 1, which no set was distilled with."""
        (joint, stage), (_, sequence, _) = self.joint, self.sequence
        seen = stage.teachers.num_teachers
        teachers = _record_some(stage, seen + UNSEEN_TEACHERS)
        sets = {f"MTT, {self.joint_config.ipc} images": joint, "$S_1$": SubsetSequence(sequence.subsets[:1])}
        cases = {f"{name}, unseen teachers": (teachers, subsets) for name, subsets in sets.items()}
        return self._errors(cases, range(seen, seen + UNSEEN_TEACHERS))

    def real_errors(self) -> pd.DataFrame:
        """The same for random real images, as many as one set and as S_1 have, with the step sizes of these."""
        (joint, stage), (_, sequence, _) = self.joint, self.sequence
        teachers, seed = record_stage_teachers(stage), self.config.seed
        cases = {}
        for name, subset in (("MTT", joint.subsets[0]), ("$S_1$", sequence.subsets[0])):
            ipc = len(subset.images) // stage.num_classes
            given = stage.images, stage.labels, stage.num_classes, ipc, subset.lr, seed
            draw = SubsetSequence((sample_real_subset(*given, "matching error", ipc),))
            cases[f"{ipc} random real, step size of {name}"] = teachers, draw
        return self._errors(cases)

    def _errors(
        self, cases: Mapping[str, tuple[TrajectorySet, SubsetSequence]], which: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Measures sets, by name with the teachers to follow."""
        given = self.joint_config.options, self.start_epochs, which
        errors = [
            coupling.errors_along_trajectory(self.network("coupling"), teachers, subsets, *given).assign(set=name)
            for name, (teachers, subsets) in cases.items()
        ]
        return pd.concat(errors, ignore_index=True)

    def training_errors(self) -> pd.DataFrame:
        """The same for training on the real data itself, with other batches than the teachers of either stage had."""
        (_, stage), (_, _, (_, second, *_)) = self.joint, self.sequence
        given = self.joint_config.options.expert_epochs, self.start_epochs, range(RETRAINED_TEACHERS), self.config.seed
        errors = []
        for name, one in (("real training", stage), ("real training, after $S_1$", second)):
            teachers, real = _record_some(one, RETRAINED_TEACHERS), Split(one.images, one.labels)
            network = self.network("coupling")
            errors.append(coupling.errors_of_real_training(network, teachers, real, one.teachers, *given).assign(set=name))
        return pd.concat(errors, ignore_index=True)

    @property
    def start_epochs(self) -> Sequence[int]:
        """About five start epochs of matched segments, which the teachers of all stages have."""
        ends = [end for _, end in (*self.joint_config.intervals, *self.config.intervals)]
        last = min(ends) - self.joint_config.options.expert_epochs
        return range(0, last + 1, max(1, last // 4))

    def losses(self) -> pd.DataFrame:
        """The losses of easy and hard real images while networks train on real data, on the set, and on the sequence."""
        recipe = self.joint_config.training
        cases = {"MTT": ("MTT", self.joint[0], recipe), "SeqMatch": ("SeqMatch", self.sequence[1], recipe)}
        return pd.concat([coupling.mean_losses(*self.watched, "real data"), *self._losses(cases)], ignore_index=True)

    def control_losses(self) -> pd.DataFrame:
        """The same while they train on the controls.

        Each begins with the network and the random numbers of the set that it is compared with.
        """
        return pd.concat(self._losses(self.controls), ignore_index=True)

    @cached_property
    def controls(self) -> dict[str, tuple[str, SubsetSequence, TrainingRecipe]]:
        """What the sequence is compared with, in the order of `COUPLING_CONTROLS`, as `_losses` takes it.

        One set for as many epochs as the sequence has in all; S_1 in all stages; and, if all of them were distilled,
        S_1 with independent parts in the places of the later subsets.
        """
        recipe, sequence = self.joint_config.training, self.sequence[1]
        controls = {
            ONE_SET_LONGER: ("MTT", self.joint[0], replace(recipe, epochs=len(sequence) * recipe.epochs)),
            FIRST_REPEATED: ("SeqMatch", with_first_repeated(sequence), recipe),
        }
        if _finished_parts(self.config, self.results_dir):
            halves = with_independent_parts(self.config, sequence, self.results_dir)
            controls[PARTS_IN_PLACE] = ("SeqMatch", halves, recipe)
        return controls

    @cached_property
    def watched(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of real images while a network trains on them, and which of these images are easy."""
        real = Split(self.joint[1].images, self.joint[1].labels)
        losses = self._follow_real("real training", make_generator(self.config.seed, "watched"), real)
        return losses, coupling.split_easy_hard(losses)

    def _losses(self, cases: Mapping[str, tuple[str, SubsetSequence, TrainingRecipe]]) -> list[pd.DataFrame]:
        """Measures trainings, by name: what seeds them, the set and the recipe."""
        real, frames = Split(self.joint[1].images, self.joint[1].labels), []
        for name, (purpose, sequence, recipe) in cases.items():
            network, generator = self.network("watched", purpose), make_generator(self.config.seed, purpose)
            losses = coupling.follow_staged_training(network, sequence, recipe, real, generator)
            frames.append(coupling.mean_losses(losses, self.watched[1], name))
        return frames

    def deciles(self) -> pd.DataFrame:
        """The accuracy on test images by difficulty, after each stage of training on the sequence."""
        return self._by_difficulty({"": (self.sequence[1], self.config.training)})

    def selected_deciles(self) -> pd.DataFrame:
        """The same at the end of training on the sequence with the selected iterate of its last subset."""
        return self._by_difficulty({SELECTED: (self.selected, self.config.training)})

    @cached_property
    def selected(self) -> SubsetSequence | None:
        """The sequence with the selected iterate of its last subset; None if that is the last iterate, or was not kept."""
        last, path = (set_path(self.results_dir, self.config.run_id, selected) for selected in (False, True))
        sequence = load_sequence(path) if path.is_file() else None
        is_other = sequence is not None and sequence.sha256() != load_sequence(last).sha256()
        return sequence.to(choose_device()) if is_other else None

    def control_deciles(self) -> pd.DataFrame:
        """The same at the end of training on the one set and on the controls, each time with the same networks at first."""
        cases = {"MTT": (self.joint[0], self.joint_config.training)}
        return self._by_difficulty(cases | {name: case for name, (_, *case) in self.controls.items()})

    def _by_difficulty(self, cases: Mapping[str, tuple[SubsetSequence, TrainingRecipe]]) -> pd.DataFrame:
        """Returns the accuracy in each decile of difficulty, of as many networks as evaluate the run.

        At the end of training on each set, by its name; for the name "" after each stage of it.
        """
        rows = []
        for number in range(self.config.evaluation.num_networks):
            for name, case in cases.items():
                stages = self._follow_stages(number, *case)
                after = {name: stages[-1]} if name else {f"stage {k}": stage for k, stage in enumerate(stages, start=1)}
                rows += [(*one, stage, number) for stage, accuracies in after.items() for one in accuracies.items()]
        return pd.DataFrame(rows, columns=["decile", "accuracy", "after", "network"])

    def _follow_stages(self, number: int, sequence: SubsetSequence, recipe: TrainingRecipe) -> list[dict[int, float]]:
        """Returns the accuracy of one network in each decile of difficulty after each stage of training."""
        purpose = ("stages", str(number)) if number else ("stages",)  # the first network is the only one of older tables
        network, after = self.network(*purpose), []
        train_staged(
            [network], sequence, recipe, [make_generator(self.config.seed, *purpose)],
            lambda: after.append(coupling.group_accuracies(network, self.test, self.difficulty)),
        )  # fmt: skip
        return after

    @property
    def test(self) -> Split:
        return self.sequence[0].test

    @cached_property
    def difficulty(self) -> torch.Tensor:
        """The decile of difficulty of each test image."""
        return coupling.difficulty_deciles(self._follow_real("difficulty", make_generator(0), self.test))

    def subsets(self) -> pd.DataFrame:
        """How the last subset is coupled with those before it, for sequences of several K."""
        return pd.concat([_of_last_subset(run, self.results_dir) for run in (self.config, *self.divided)])

    def _follow_real(self, purpose: str, generator: torch.Generator, watched: Split) -> torch.Tensor:
        """Returns the losses of the watched images while a fresh network trains on real ones."""
        stage, config = self.joint[1], self.joint_config.teachers
        real = Split(stage.images, stage.labels)
        return coupling.follow_real_training(self.network(purpose), real, config, FOLLOWED_EPOCHS, generator, watched)


def _record_some(stage: Stage, num_teachers: int) -> TrajectorySet:
    """Records so many teachers of a stage, fewer or more than its own runs have."""
    return record_stage_teachers(replace(stage, teachers=replace(stage.teachers, num_teachers=num_teachers)))


def _of_last_subset(config: RunConfig, results_dir: Path) -> pd.DataFrame:
    """How A = S_1 ∪ … ∪ S_{K-1} and B = S_K are coupled, for a few teachers of the last stage."""
    _, sequence, stages = open_run(config, results_dir)
    record = load_record(record_path(results_dir, config))
    teachers, last, mtt = record_stage_teachers(stages[-1]), sequence.subsets[-1], config.options
    parts = sequence.union(len(sequence) - 1), (last.images, last.labels)
    network = stages[0].make_network(config.seed, "coupling")
    rows = []
    for teacher in range(min(FEW_TEACHERS, len(teachers))):
        segment = teachers.segment(teacher, 0, mtt.expert_epochs)
        match = coupling.MatchingLoss(network, segment, mtt.syn_steps, last.lr, mtt.engine)
        measured = {"coupling_of_earlier": match.coupling(*parts), "repair_by_last": match.repair_share(*parts)}
        rows.append({"K": len(sequence), "teacher": teacher, **measured, "accuracy": record.accuracy_last["mean"]})
    return pd.DataFrame(rows)
