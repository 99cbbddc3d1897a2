"""What ends a job of several processes: one line that says why, from one of them, and what was finished is kept."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from several import Job, together
from tiny_world import TRAIN, call, directions, stored

import main
from asyrp import training, watch
from asyrp.ranks import Ranks, take_own_gpu
from utils.errors import UserError
from utils.files import held

LONG = (*TRAIN, "--n_train_img", "4", "--n_iter", "3")
TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Signs of life follow one another faster."""
    for name, seconds in (("PAUSE", 0.1), ("SILENT", 1.0), ("DEAD", 4.0)):
        monkeypatch.setattr(watch, name, seconds)


@pytest.fixture
def failing(tiny, tmp_path, monkeypatch):
    """failing(fault, guilty, world, flags) -> Job: a training; fault() happens in the processes `guilty` at the third batch."""
    monkeypatch.chdir(tmp_path)

    def failing(fault, guilty, world=2, flags=LONG):
        def work(rank):
            real, batches = training.train_batch, []

            def train_batch(*args):
                batches.append(1)
                if len(batches) == 3:
                    fault()
                return real(*args)

            if rank in guilty:
                training.train_batch = train_batch
            return call(tiny, *flags)

        return Job(world, work, tmp_path / "terminals")

    return failing


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def errors(job):
    """The lines of errors, of all processes."""
    return [line for some in job.lines() for line in some if line.startswith("error: ")]


@pytest.mark.subprocess
@pytest.mark.parametrize(("guilty", "world"), [(1, 2), (0, 3)])
def test_dead_process_is_named_and_run_resumes(failing, tiny, guilty, world):
    job = failing(killed, [guilty], world)
    assert job.finish() == [-signal.SIGKILL if rank == guilty else 2 for rank in range(world)]
    [line] = errors(job)
    assert line.startswith(f"error: these processes died: rank {guilty} (process {job.processes[guilty].pid} on ")
    assert "run the same command to resume" in line
    assert [name[-6:] for name in directions()] == ["_0.pth"]  # an epoch has two batches
    again = (*LONG, "--bs_train", str(world))
    assert call(tiny, *again) == 0
    resumed = directions()
    assert call(tiny, *again, "--retrain", "1") == 0
    torch.testing.assert_close(resumed, directions(), rtol=0, atol=1e-5)


@pytest.mark.subprocess
def test_hanging_process_times_out(failing):
    """Its connections are open: nothing but its silence tells."""
    job = failing(lambda: os.kill(os.getpid(), signal.SIGSTOP), [1])
    job.processes[0].join(30)
    assert job.processes[0].exitcode == 2
    job.processes[1].kill()
    job.finish()
    [line] = errors(job)
    assert line.startswith("error: these processes died: rank 1 (process ")


def damaged():
    raise UserError("image 7 is damaged: mend it")


@pytest.mark.subprocess
def test_error_of_one_process_is_reported_once_and_ends_all(failing):
    job = failing(damaged, [1], 3)
    assert job.finish() == [2, 2, 2]
    assert errors(job) == ["error: rank 1: image 7 is damaged: mend it"]


@pytest.mark.subprocess
def test_blocked_process_is_ended(tiny, tmp_path, monkeypatch):
    """As where a GPU waits for another one's: no error and no signal reach Python."""
    monkeypatch.chdir(tmp_path)

    def work(rank):
        training.train_batch = lambda *args: time.sleep(50) if rank == 0 else damaged()
        return call(tiny, *LONG)

    terminal, other = together(2, work, [2, 2], folder=tmp_path / "terminals")
    assert not [line for line in terminal if line.startswith("error: ")]
    assert other == ["error: rank 1: image 7 is damaged: mend it"]


@pytest.mark.subprocess
def test_error_of_all_processes_is_reported_by_rank_0(failing):
    job = failing(damaged, [0, 1, 2], 3)
    assert job.finish() == [2, 2, 2]
    assert errors(job) == ["error: image 7 is damaged: mend it"]
    assert job.lines()[1:] == [[], []]


@pytest.mark.subprocess
def test_fault_of_the_program_shows_one_trace(failing):
    job = failing(lambda: 1 // 0, [1], 3)
    assert job.finish() == [2, 99, 2]
    assert ["ZeroDivisionError" in " ".join(some) for some in job.lines()] == [False, True, False]
    assert not errors(job)


@pytest.mark.subprocess
def test_signal_to_all_is_reported_once(failing):
    """As a scheduler sends it, and Ctrl-C."""
    job = failing(lambda: os.kill(os.getpid(), signal.SIGTERM), [0, 1, 2], 3)
    assert job.finish() == [143, 143, 143]
    assert not errors(job)
    terminal, *others = job.lines()
    assert terminal[-1] == main.STOPPED
    assert others == [[], []]


@pytest.mark.subprocess
def test_loss_that_is_not_finite_names_its_image_and_rescues_the_direction(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def work(rank):
        loss = training.EditLoss.__call__

        def exploding(self, P_edit, P_plain, prepared, keys):
            total, row = loss(self, P_edit, P_plain, prepared, keys)
            return (total * float("nan"), row * float("nan")) if keys[0][0] == 3 else (total, row)

        training.EditLoss.__call__ = exploding
        return call(tiny, *LONG, "--n_train_img", "4")

    [terminal, other] = together(2, work, [2, 2], folder=tmp_path / "terminals")
    assert "the loss is not finite at image 03.png, timestep 999" in terminal[-1]
    assert "_0_2.pth starts from the direction before that batch" in terminal[-1]
    assert other == []
    [rescued] = directions().values()
    assert all(tensor.isfinite().all() for tensor in rescued["0"].values())


@pytest.mark.subprocess
@pytest.mark.parametrize("flags", [("--n_iter", "0"), ("--t_0", "5000"), ("--custom_train_dataset_dir", "nowhere")])
def test_common_error_is_reported_once(tiny, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    terminal, *others = together(3, lambda rank: call(tiny, *LONG, *flags), [2, 2, 2], folder=tmp_path / "terminals")
    assert len(terminal) == 1
    assert terminal[0].startswith("error: ")
    assert others == [[], []]


@pytest.mark.subprocess
def test_two_jobs_do_not_train_one_experiment(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = Path("checkpoint/.smile_LC_CUSTOM_t999_ninv4_ngen4.lock")
    with held(lock, "what the test does"):
        terminal, other = together(2, lambda rank: call(tiny, *LONG), [2, 2], folder=tmp_path / "terminals")
    assert "is in use by process" in terminal[-1]
    assert other == []
    assert not directions()


# ---- processes that cannot talk ---------------------------------------------------------------------------------------------


def test_training_needs_connected_processes(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for flags in (TRAIN, ("--lpips",), ("--fit_direction", "h_pca")):
        assert "start it with torchrun" in run.error(*flags)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2: ranks are numbered from 0"),
        ({"RANK": "x"}, "RANK=x in the environment is not a number"),
    ],
)
def test_invalid_environment(run, monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said in run.error("--just_precompute")


def test_task_of_a_slurm_array(monkeypatch):
    def task(number, low, high, count):
        for name, value in zip(("ID", "MIN", "MAX", "COUNT"), (number, low, high, count), strict=True):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        found = Ranks()
        found.join(slurm_array=True)
        return found.rank, found.world, found.joined

    assert task(0, 0, 7, 8) == (0, 8, False)
    assert task(12, 10, 13, 4) == (2, 4, False)
    for gaps in ((4, 0, 6, 4), (9, 0, 7, 8)):
        with pytest.raises(UserError, match="without gaps"):
            task(*gaps)
    with pytest.raises(UserError, match="--slurm_array conflicts with RANK and WORLD_SIZE"):
        Ranks(0, 2).join(slurm_array=True)


def test_tasks_of_a_slurm_array_share_the_images(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("MIN", 0), ("MAX", 1), ("COUNT", 2)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    for task, n in ((1, 2), (0, 4)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        flags = ("--just_precompute", "--slurm_array", "--n_precomp_img", "4", "--do_test", "0", "--bs_precompute", "1")
        assert call(tiny, *flags) == 0
        assert len(stored("latent")) == n


# ---- GPUs -------------------------------------------------------------------------------------------------------------------


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    """On a machine that has some; here nothing is computed on them."""
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for gpus, local in ((8, 3), (1, 3)):  # or it sees one alone, as Slurm gives it
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.setenv("LOCAL_RANK", str(local))
        take_own_gpu(None)
    assert taken == [3, 0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="process 4 of this machine has no GPU, there are only 2: use --nproc_per_node 2"):
        take_own_gpu("cuda")
    with pytest.raises(UserError, match="--device cuda:0 would be used by all processes"):
        take_own_gpu("cuda:0")


# ---- torchrun ---------------------------------------------------------------------------------------------------------------


@pytest.mark.subprocess
def test_torchrun(tiny, tmp_path, monkeypatch):
    """The real one, which takes seconds: two processes train, until one is killed in the second epoch."""
    monkeypatch.chdir(tmp_path)
    victim = [TESTS / "victim.py", tiny.folder, "train_batch", "3", *LONG]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *victim]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "VICTIM_RANK": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: these processes died: rank 1")
    assert len(directions()) == 1
