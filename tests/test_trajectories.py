"""Teacher files: copies of the weights, checksums, resume, and two processes at once."""

import contextlib
import itertools
import multiprocessing
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import EAGER, Impatient, flip, make_stage

from seqmatch_lib.engine import training
from seqmatch_lib.engine.networks import NetworkConfig, count_parameters, flatten_parameters, make_network
from seqmatch_lib.errors import ConfigError, DivergenceError, OutOfTime, StorageError
from seqmatch_lib.methods import teachers as trajectories
from seqmatch_lib.methods.teachers import TeacherConfig, record_trajectories
from seqmatch_lib.seeds import make_generator
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.store.files import acquire_lock

CONFIG = TeacherConfig(num_teachers=3, epochs=4, lr=0.1, batch_size=8, **EAGER)
SHAPE, CLASSES, EPOCHS = (1, 4, 4), 3, 4


def make_data():
    generator = make_generator(0, "data")
    return torch.randn(40, *SHAPE, generator=generator), torch.randint(CLASSES, (40,), generator=generator)


def make_start(teacher):
    return make_network(NetworkConfig(width=4, depth=1), SHAPE, CLASSES, make_generator(0, "start", teacher))


def make_starts(teachers):
    return [make_start(teacher) for teacher in teachers]


def record(folder, config=CONFIG, starts=make_starts, budget=None, name="test"):
    images, labels = make_data()
    stage = replace(make_stage(folder), images=images, labels=labels, teachers=config, budget=budget or Budget())
    return record_trajectories(folder, {"name": name}, stage, starts)


def test_compiled_teachers_are_the_plain_ones_up_to_rounding(tmp_path, uncompiled):
    plain = record(tmp_path / "plain", replace(CONFIG, num_teachers=5))
    config = replace(CONFIG, num_teachers=5, engine="compiled", together=2)
    groups = []
    compiled = record(tmp_path / "compiled", config, lambda teachers: groups.append(teachers) or make_starts(teachers))
    assert groups == [[0, 1], [2, 3], [4]]
    for teacher in range(5):
        for epoch in range(1, EPOCHS + 1):
            ours, theirs = compiled.segment(teacher, 0, epoch)[1], plain.segment(teacher, 0, epoch)[1]
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
            assert not torch.equal(theirs, plain.segment(teacher, 0, 0)[1])
        assert compiled.train_losses(teacher) == pytest.approx(plain.train_losses(teacher), rel=1e-4)


def test_rows_are_copies_of_the_weights_after_each_epoch(tmp_path):
    teachers = record(tmp_path)
    assert len(teachers) == 3
    rows = np.load(tmp_path / "teacher-001.npy")
    assert rows.shape == (EPOCHS + 1, count_parameters(make_start(1)))
    assert rows.dtype == np.float32
    start, end = teachers.segment(1, 0, EPOCHS)
    assert torch.equal(start, flatten_parameters(make_start(1)))
    assert torch.equal(end, torch.from_numpy(rows[-1]))
    assert len({row.tobytes() for row in rows}) == EPOCHS + 1  # a view of live weights would repeat the last row
    assert len(teachers.train_losses(1)) == EPOCHS
    assert teachers.train_losses(1)[-1] < teachers.train_losses(1)[0]


def test_two_epochs_are_plain_sgd_with_momentum_and_weight_decay(tmp_path):
    config = replace(CONFIG, num_teachers=1, epochs=2, augment="none", batch_size=16, momentum=0.5, weight_decay=0.1, seed=3)
    _, end = record(tmp_path, config).segment(0, 0, 2)
    network, (images, labels) = make_start(0), make_data()
    sgd = torch.optim.SGD(network.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    for epoch in range(2):
        order = torch.randperm(len(images), generator=make_generator(config.seed, "teacher", 0, "epoch", epoch))
        for rows in order.split(config.batch_size):
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            sgd.step()
    torch.testing.assert_close(end, flatten_parameters(network))


def test_every_epoch_of_every_teacher_has_an_order_of_its_own(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "apply_augmentation", lambda images, drawn: seen.append(images) or images)
    record(tmp_path, replace(CONFIG, num_teachers=2, epochs=2, batch_size=40))
    assert len(seen) == len({images.numpy().tobytes() for images in seen}) == 4


def test_a_second_run_trains_only_what_is_missing(tmp_path):
    record(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("teacher-*.npy")}
    (tmp_path / "teacher-001.json").unlink()  # as if killed between the rows and their checksums
    started = []
    record(tmp_path, starts=lambda teachers: started.extend(teachers) or make_starts(teachers))
    assert started == [1]
    assert {path: path.read_bytes() for path in tmp_path.glob("teacher-*.npy")} == before


def test_a_damaged_row_is_noticed_and_others_still_read(tmp_path):
    teachers = record(tmp_path)
    path = tmp_path / "teacher-002.npy"
    data = flip(path.read_bytes(), -1)
    path.write_bytes(data)
    teachers.segment(2, 0, 1)
    with pytest.raises(StorageError, match="epoch 4 of .*teacher-002.npy does not match its checksum"):
        teachers.segment(2, 0, 4)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError, match="teacher-002.npy is damaged"):
        teachers.segment(2, 0, 1)
    path.write_bytes(b"PK\x03\x04" + data[4:])  # as a zip archive begins, which numpy leaves open (a warning is an error)
    with pytest.raises(StorageError, match="teacher-002.npy is damaged"):
        teachers.segment(2, 0, 1)


def test_every_damaged_bit_of_the_header_is_noticed(tmp_path):
    teachers = record(tmp_path, replace(CONFIG, num_teachers=1))
    path = tmp_path / "teacher-000.npy"
    whole, expected = path.read_bytes(), teachers.segment(0, 0, 4)
    rows = np.load(path)
    header = len(whole) - rows.nbytes
    np.save(tmp_path / "plain.npy", rows)
    assert (tmp_path / "plain.npy").read_bytes() == whole
    unnoticed = []
    for position, bit in itertools.product(range(header), range(8)):
        path.unlink()  # what is mapped into memory keeps the old file
        path.write_bytes(flip(whole, position, bit))
        with warnings.catch_warnings(), contextlib.suppress(StorageError):
            warnings.simplefilter("ignore")
            found = teachers.segment(0, 0, 4)
            if any(a.dtype != b.dtype or not torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
                unnoticed.append((position, bit))
    assert not unnoticed  # such as integers in place of floats, whose bytes have the same checksum


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    names = [".manifest.json.1.tmp", ".teacher-000.npy.1.tmp", ".teacher-001.json.1.tmp", ".teacher-002.npy.2.tmp"]
    for name in names:
        (tmp_path / name).write_text("half")
    lock = acquire_lock(tmp_path / "teacher-002.lock")  # a living process is at teacher 2 …
    started = []

    def starts(teachers):
        started.extend(teachers)
        if started == [0, 1]:  # … and finishes, or dies, when the others are there
            assert [path.name for path in tmp_path.glob(".*.tmp")] == names[3:]
            lock.__exit__(None, None, None)
        return make_starts(teachers)

    record(tmp_path, starts=starts)
    assert started == [0, 1, 2]
    assert not list(tmp_path.glob(".*.tmp"))


def test_finished_teachers_need_no_lock_and_so_no_folder_to_write_into(tmp_path, monkeypatch):
    before = record(tmp_path).segment(1, 0, 4)

    def refuse(path, timeout=-1):
        raise AssertionError(f"locked {path}")

    monkeypatch.setattr(trajectories, "acquire_lock", refuse)
    after = record(tmp_path).segment(1, 0, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_epoch_beyond_the_recorded_ones_is_named(tmp_path):
    with pytest.raises(StorageError, match="epoch 5 is beyond the 4 recorded"):
        record(tmp_path).segment(0, 3, 5)


def test_a_folder_of_other_teachers_is_refused(tmp_path):
    record(tmp_path)
    with pytest.raises(StorageError, match="holds other teachers"):
        record(tmp_path, name="other")


def test_a_diverging_teacher_stops_and_leaves_no_file(tmp_path):
    with pytest.raises(DivergenceError, match=r"teacher 0 diverged in epoch \d.*lower teachers.lr"):
        record(tmp_path, replace(CONFIG, lr=1e30))
    assert not list(tmp_path.glob("teacher-*.npy"))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_stopped_after_every_epoch_teachers_end_bit_for_bit_the_same(tmp_path, uncompiled, engine):
    config = replace(CONFIG, momentum=0.9, engine=engine, together=2)
    whole = record(tmp_path / "whole", config)
    for stops in itertools.count():
        try:
            parts = record(tmp_path / "parts", config, budget=Impatient())
            break
        except OutOfTime:
            finished = sorted(path.name for path in (tmp_path / "parts").glob("teacher-*.json"))
            assert finished == ["teacher-000.json", "teacher-001.json"][: 2 * (stops >= EPOCHS)]
    assert stops == 2 * EPOCHS  # two teachers at a time, then the third
    for teacher in range(3):
        paths = [tmp_path / name / f"teacher-{teacher:03d}.npy" for name in ("whole", "parts")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert whole.train_losses(teacher) == parts.train_losses(teacher)
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    assert not list((tmp_path / "parts").glob(".*.tmp"))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_teachers_that_go_on_need_no_networks_trained_on_the_stages_before(tmp_path, uncompiled, engine):
    config, started = replace(CONFIG, momentum=0.9, num_teachers=2, engine=engine, together=2), []

    def starts(teachers):
        started.append(teachers)
        return make_starts(teachers)

    record(tmp_path / "whole", config)
    with pytest.raises(OutOfTime):
        record(tmp_path / "parts", config, starts, Impatient())
    record(tmp_path / "parts", config, starts)
    assert started == [[0, 1]]
    for name in ("teacher-000.npy", "teacher-001.npy"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_killed_between_the_files_of_two_teachers_a_group_goes_on(tmp_path, uncompiled, monkeypatch, engine):
    config, started = replace(CONFIG, engine=engine, together=3), []
    record(tmp_path / "whole", config)
    write = trajectories.write_parts

    def stop(path, *parts):
        if path.name == "teacher-001.npy":
            raise KeyboardInterrupt
        write(path, *parts)

    monkeypatch.setattr(trajectories, "write_parts", stop)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "parts", config, budget=Budget(save_seconds=0))
    monkeypatch.setattr(trajectories, "write_parts", write)
    record(tmp_path / "parts", config, lambda teachers: started.append(teachers) or make_starts(teachers))
    assert not started
    for teacher in range(3):
        paths = [tmp_path / name / f"teacher-{teacher:03d}.npy" for name in ("whole", "parts")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.timeout(30)
def test_a_wait_for_another_process_ends_with_the_time(tmp_path):
    config = replace(CONFIG, num_teachers=1)
    with ThreadPoolExecutor(1) as other:  # its thread has a lock of its own, as another process has
        lock = other.submit(acquire_lock, tmp_path / "teacher-000.lock").result()
        with pytest.raises(OutOfTime):
            record(tmp_path, config, budget=Budget(max_minutes=0.5 / 60))
        other.submit(lock.__exit__, None, None, None).result()
    assert len(record(tmp_path, config)) == 1


def test_the_state_of_teachers_that_are_finished_goes(tmp_path):
    record(tmp_path)
    stale = tmp_path / "teacher-002.safetensors"  # as if killed before it could be removed
    stale.touch()
    record(tmp_path)
    assert not stale.exists()


def test_the_state_of_teachers_that_only_another_run_needs_stays(tmp_path):
    record(tmp_path)
    with pytest.raises(OutOfTime):
        record(tmp_path, replace(CONFIG, num_teachers=4), budget=Impatient())
    state = (tmp_path / "teacher-003.safetensors").read_bytes()
    record(tmp_path)
    assert (tmp_path / "teacher-003.safetensors").read_bytes() == state


def _record_in_process(folder, barrier, started):
    barrier.wait()

    def starts(teachers):
        started.extend(teachers)
        return make_starts(teachers)

    record(folder, replace(CONFIG, num_teachers=6), starts)


def test_two_processes_share_the_work_and_never_a_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier, started = manager.Barrier(2), manager.list()
        processes = [context.Process(target=_record_in_process, args=(tmp_path / "both", barrier, started)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
        assert sorted(started) == list(range(6))
    alone = record(tmp_path / "alone", replace(CONFIG, num_teachers=6))
    both = record(tmp_path / "both", replace(CONFIG, num_teachers=6))
    for teacher in range(6):
        assert all(torch.equal(a, b) for a, b in zip(alone.segment(teacher, 0, 4), both.segment(teacher, 0, 4), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_teachers": 0}, "teachers.num_teachers 0 must be at least 1"),
        ({"epochs": 0}, "teachers.epochs 0"),
        ({"lr": 0.0}, "teachers.lr 0.0 must be positive"),
        ({"momentum": 1.0}, r"teachers.momentum 1.0 must lie in \[0, 1\)"),
        ({"augment": "blur"}, "blur"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TeacherConfig(**settings)
