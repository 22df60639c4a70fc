"""What only a GPU can show (`pytest -m gpu`): its gradients, teachers, evaluation and resumed runs against those of the CPU.

On a machine without one the same tests run on the CPU, as a rehearsal.
"""

import pytest
import torch
from helpers import finish_in_parts

from seqmatch_lib.data.datasets import load_dataset
from seqmatch_lib.engine.augment import DSA_STRATEGY, draw_augmentation
from seqmatch_lib.engine.inner_loop import InnerBatch, unroll
from seqmatch_lib.engine.networks import NetworkConfig, flatten_parameters, make_network
from seqmatch_lib.engine.step_functions import UNCOMPILED
from seqmatch_lib.methods.teachers import record_stage_teachers
from seqmatch_lib.runs.config import RunConfig
from seqmatch_lib.runs.experiment import choose_device, make_first_stage, run_experiment
from seqmatch_lib.runs.real_data import prepare_data
from seqmatch_lib.runs.reevaluation import reevaluate
from seqmatch_lib.store.budget import Budget
from seqmatch_lib.subsets import load_sequence

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # advice of torch's compiler on a GPU ends no check

DEVICE, CPU = choose_device(), torch.device("cpu")
CONFIG = RunConfig.from_preset("digits-ipc10-seqmatch_mtt", "smoke", overrides={"mtt.iterations": 6, "training.epochs": 20})


@pytest.fixture(autouse=True)
def full_precision():
    """Torch computes convolutions of uncompiled code in TF32 on a GPU, which is too far from a CPU for what is compared."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("strategy", ["none", DSA_STRATEGY])
def test_the_compiled_unroll_has_the_gradients_of_higher(generator, strategy):
    """In float64, ConvNet-3 of the paper's kind on colour images, with augmentation and a learned step size."""
    network = make_network(NetworkConfig(width=16), (3, 32, 32), 10, generator).to(DEVICE, torch.float64)
    start = flatten_parameters(network)
    images = torch.randn(20, 3, 32, 32, generator=generator, dtype=torch.float64).to(DEVICE).requires_grad_()
    labels = (torch.arange(20) % 10).to(DEVICE)
    lr = torch.tensor(0.02, dtype=torch.float64, device=DEVICE, requires_grad=True)
    batches = []
    for _ in range(4):
        rows = torch.randperm(20, generator=generator)[:10].to(DEVICE)
        batches.append(InnerBatch(rows, draw_augmentation(strategy, 10, (32, 32), generator, device=DEVICE)))
    gradients = {}
    for engine in ("higher", "compiled"):
        reached = unroll(network, start, images, labels, batches, lr, engine)
        gradients[engine] = torch.autograd.grad((reached - start).square().sum(), [images, lr])
    for ours, theirs in zip(gradients["compiled"], gradients["higher"], strict=True):
        assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()
    assert not UNCOMPILED


def test_teachers_are_those_of_the_cpu(tmp_path):
    """After one epoch; later the rounding of one step is in all the others."""
    rows = {}
    for device in {CPU, DEVICE}:
        data = prepare_data(load_dataset("digits"), CONFIG.zca, CONFIG.select_on, device)
        teachers = record_stage_teachers(make_first_stage(CONFIG, data, tmp_path / device.type, Budget()))
        rows[device] = torch.stack(teachers.segment(0, 0, 1))
    assert torch.equal(rows[CPU][0], rows[DEVICE][0])
    moved = (rows[CPU][1] - rows[CPU][0]).norm()
    assert (rows[CPU][1] - rows[DEVICE][1]).norm() < 1e-3 * moved


def test_a_run_in_parts_is_the_run_in_one_go_and_its_set_is_worth_as_much_on_the_cpu(tmp_path):
    """Stopped at every checkpoint. A GPU adds up in another order each time, so losses are near and not equal."""
    whole = run_experiment(CONFIG, tmp_path / "whole", device=DEVICE)
    limits = {"max_minutes": 1e-6, "save_seconds": 0}
    resumed, stops = finish_in_parts(lambda: run_experiment(CONFIG, tmp_path / "parts", device=DEVICE, **limits))
    assert stops > 3
    for one, other in zip(whole.stages, resumed.stages, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=0.02)
    sequence = load_sequence(tmp_path / "whole" / "distilled" / f"{CONFIG.run_id}.safetensors")
    data = prepare_data(load_dataset("digits"), CONFIG.zca, CONFIG.select_on, CPU)
    there = reevaluate(sequence, CONFIG, data, seed=CONFIG.seed).accuracy["convnet"]
    assert there["values"] == pytest.approx(whole.accuracy_last["values"], abs=3.0)  # per cent


def test_compiled_code_makes_the_run_of_uncompiled_code(tmp_path):
    """Teachers, inner loops, scores and evaluation: all that a GPU replays as CUDA graphs, and trains as stacked networks."""
    engines = {f"{section}.engine": "compiled" for section in ("teachers", "mtt", "training")}
    few = CONFIG.changed({"mtt.iterations": 3, "training.epochs": 10})
    plain = run_experiment(few, tmp_path / "plain", device=DEVICE)
    compiled = run_experiment(few.changed(engines), tmp_path / "compiled", device=DEVICE)
    assert compiled.uncompiled == []
    for one, other in zip(plain.stages, compiled.stages, strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=0.02)
    for name in ("accuracy_last", "random_baseline"):
        assert getattr(compiled, name)["values"] == pytest.approx(getattr(plain, name)["values"], abs=3.0)  # per cent
