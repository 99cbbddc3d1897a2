"""Edit-friendly noise maps: what comes back, what the maps depend on, and whole runs with --inversion ddpm."""

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch
from tiny_world import SIZE, SMILE, TEST, directions, open_tiny, settings, smooth_images, stored

from asyrp import process
from asyrp.data.datasets import ImageFolder
from asyrp.data.pairs import InvertedPairs, NoiseMaps
from asyrp.directions import Direction
from asyrp.noise_maps import noise_maps, replayed
from asyrp.process import Schedule
from asyrp.report.pictures import to_pil
from asyrp.store import Store
from asyrp.training import new_function, new_record
from utils.errors import UserError

DDPM = ("--inversion", "ddpm")
SEED = 7


@pytest.fixture(scope="module")
def model(tiny):
    return open_tiny(tiny)


@pytest.fixture(scope="module")
def adm(tiny):
    """Its U-Net predicts variances as well."""
    return open_tiny(tiny, "adm")


def maps(model, x_0, timesteps, **more):
    noise = process.image_noise(SEED, range(len(x_0)))
    return noise_maps(model.unet, x_0.to(model.device), model.schedule, timesteps, noise, **more)


def walked(model, x_T, z, timesteps):
    """-> (the states x_t of the process, downward, and x_0)."""
    states = []
    more = {"callback": lambda i, t, x_t, P_t: states.append(x_t)} | replayed(z, timesteps)
    return states, process.generate(model.unet, x_T, model.schedule, timesteps, **more)


# ---- the equations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["model", "adm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_process_passes_through_the_states_of_the_image(request, network, dtype):
    """To the rounding of a single z, down to the lowest timestep, whatever the network says; what is left is the error of P_t
    there."""
    model, x_0 = request.getfixturevalue(network), smooth_images(2)
    timesteps, noise = model.timesteps(6), process.image_noise(SEED, [0, 1])
    x_T, z = maps(model, x_0, timesteps, dtype=dtype)
    states, found = walked(model, x_T, z, timesteps)
    down = timesteps[::-1]
    for i, (t, state) in enumerate(zip(down, states, strict=True)):
        a = model.schedule.alpha_bar(t)
        wanted = math.sqrt(a) * x_0 + math.sqrt(1 - a) * noise(i, x_0.shape)
        added = process.ddim_sigma(down[i - 1], t, model.schedule, 1.0) * z[:, i - 1].abs().max().item() if i else 0
        assert (state.cpu() - wanted).abs().max() < 1e-5 + added * torch.finfo(dtype).eps
    eps, _ = process.split_prediction(model.unet(states[-1], process.time_batch(states[-1], timesteps[0])))
    P_t = process.predict_x0(states[-1], eps, timesteps[0], model.schedule)
    assert torch.allclose(found, P_t, atol=1e-5)
    assert not z[:, -1].any()


def test_each_z_is_what_the_equation_says(model):
    """z_t = (x_s - mu_t) / sigma_t, written out once more."""
    timesteps, x_0 = [0, 400, 999], smooth_images(1)
    x_T, z = maps(model, x_0, timesteps, dtype=torch.float32)
    bars, noise = model.schedule.alpha_bars, process.image_noise(SEED, [0])
    assert torch.allclose(x_T.cpu(), bars[999] ** 0.5 * x_0 + (1 - bars[999]) ** 0.5 * noise(0, x_0.shape), atol=1e-6)
    x_t = x_T
    for i, (t, s) in enumerate(pairwise([999, 400, 0])):
        with torch.no_grad():
            eps = model.unet(x_t, torch.tensor([t], device=x_t.device))
        a_t, a_s = bars[t], bars[s]
        variance = (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        mu = a_s**0.5 * (x_t - (1 - a_t) ** 0.5 * eps) / a_t**0.5 + (1 - a_s - variance) ** 0.5 * eps
        x_s = a_s**0.5 * x_0 + (1 - a_s) ** 0.5 * noise(i + 1, x_0.shape)
        wanted = (x_s.to(mu) - mu) / variance**0.5
        assert torch.allclose(z[:, i], wanted, rtol=1e-3, atol=1e-3)
        x_t = x_s.to(mu)


def test_z_is_wider_than_noise_that_is_drawn():
    """Of a black image and a network that knows it: x_t = sqrt(1 - alpha_bar_t) n_t, and eps is n_t itself. As n_s is
    independent of n_t, the variance of z_t is (2 (1 - alpha_bar_s) - sigma_t^2) / sigma_t^2, above 1."""
    schedule, timesteps = Schedule.linear(), [0, 250, 500, 750, 999]

    def knows(x_t, t):
        return x_t / math.sqrt(1 - schedule.alpha_bar(int(t[0])))

    x_0 = torch.zeros(1, 3, 64, 64)
    _, z = noise_maps(knows, x_0, schedule, timesteps, process.image_noise(SEED, [0]), torch.float32)
    for i, (t, s) in enumerate(pairwise(timesteps[::-1])):
        variance = process.ddim_sigma(t, s, schedule, 1.0) ** 2
        wanted = math.sqrt(2 * (1 - schedule.alpha_bar(s)) / variance - 1)
        assert wanted > 1
        assert z[:, i].std().item() == pytest.approx(wanted, rel=0.05)


def test_nothing_is_replayed_without_maps():
    assert replayed(None, [0, 999]) == {}


# ---- the library ------------------------------------------------------------------------------------------------------------


def direction(model):
    made = new_record(model, "delta_block", False, ("face", "sad face"), 500, [0, 333, 666, 999], 4, {})
    return Direction(new_function(model), made, "a direction").requires_grad_(False)


def test_library_inverts_generates_and_edits(model):
    x_0 = smooth_images(2)
    x_T, z = model.noise_maps(x_0, 4, seed=SEED)
    assert (x_T.shape, z.shape, z.dtype) == (x_0.shape, (2, 4, *x_0.shape[1:]), torch.float16)
    plain = model.generate(x_T, 4, z=z)
    assert torch.allclose(plain, model.edit(x_T, direction(model), [0.0], 4, z=z), atol=1e-5)
    assert not torch.allclose(plain, model.edit(x_T, direction(model), [1.0], 4, z=z), atol=1e-3)
    assert not torch.allclose(plain, model.generate(x_T, 4), atol=1e-3)
    assert not torch.allclose(x_T, model.noise_maps(x_0, 4, seed=8)[0], atol=0.1)


def test_maps_belong_to_their_steps(model):
    x_T, z = model.noise_maps(smooth_images(1), 4)
    for walk in (lambda: model.generate(x_T, 5, z=z), lambda: model.edit(x_T, direction(model), n_steps=5, z=z)):
        with pytest.raises(UserError, match="z has 4 steps, not 5: use the n_steps that `noise_maps`"):
            walk()


# ---- the store --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of three images, the last like the first, and an empty store in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(smooth_images(2)[[0, 1, 0]]):
        to_pil(image).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def pairs(images, model):
    def new(seed=SEED, n=4):
        timesteps = model.timesteps(n)
        return InvertedPairs(ImageFolder(images, SIZE), model, timesteps, Store(), NoiseMaps(model, timesteps, seed))

    return new


def latents(pairs, batch_size=3):
    pairs.fill([0, 1, 2], batch_size)
    [batch] = pairs.batches([0, 1, 2], 3)
    return batch


def test_pairs_with_maps(pairs, model):
    batch = latents(pairs())
    x_T, z = model.noise_maps(batch.x_0, 4, seed=SEED)
    assert torch.allclose(batch.x_T, x_T.cpu(), atol=1e-5)
    assert torch.allclose(batch.z.float(), z.cpu().float(), atol=1e-2)
    assert [sorted(found) for found in stored("noise_maps").values()] == [["x_T", "z"]] * 3
    assert stored("latent") == {}


def test_number_of_an_image_decides_its_noise(pairs):
    """Two that look alike have maps of their own, and stand in keys by names of their own."""
    batch, names = latents(pairs()), pairs().names_of_content([0, 1, 2])
    assert torch.equal(batch.x_0[0], batch.x_0[2])
    assert not torch.allclose(batch.x_T[0], batch.x_T[2], atol=0.1)
    assert len(set(names)) == 3
    assert pairs().names_of_content([2, 0]) == [names[2], names[0]]


def test_batch_size_changes_nothing(images, pairs, monkeypatch):
    found = []
    for n in (1, 2, 3):
        (images.parent / str(n)).mkdir()
        monkeypatch.chdir(images.parent / str(n))
        found.append(latents(pairs(), n))
    for other in found[1:]:
        assert torch.equal(other.x_T, found[0].x_T)
        # A float16 may be rounded up or down, and the next one makes up for it.
        z = found[0].z.float()
        assert (other.z.float() - z).norm() < 1e-3 * z.norm()


@pytest.mark.parametrize("change", [{"seed": 8}, {"n": 5}], ids=["seed", "steps"])
def test_which_latents_are_reused(pairs, monkeypatch, change):
    first = latents(pairs())
    inverted = []
    monkeypatch.setattr(NoiseMaps, "latents", lambda self, *args, own=NoiseMaps.latents: inverted.append(1) or own(self, *args))
    again = latents(pairs())
    assert inverted == []
    assert torch.equal(first.x_T, again.x_T)
    assert torch.equal(first.z, again.z)
    latents(pairs(**change))
    assert inverted == [1]
    assert len(stored("noise_maps")) == 6


def test_damaged_maps_are_reported_and_recomputed(pairs, caplog):
    first = latents(pairs())
    for key in stored("noise_maps"):
        Store().path("noise_maps", key).write_bytes(b"no maps")
    assert torch.equal(latents(pairs()).z, first.z)
    assert caplog.text.count("it was removed and will be recomputed") == 3


def test_maps_that_are_not_finite_are_an_error(pairs, model, monkeypatch):
    monkeypatch.setattr(process, "split_prediction", lambda output: (output / 0, None))
    with pytest.raises(UserError, match="inf or nan: use --precision fp32, and check the weights"):
        latents(pairs())
    assert stored("noise_maps") == {}


# ---- whole runs -------------------------------------------------------------------------------------------------------------


def test_test_with_noise_maps(run_learned, results, generated, capsys):
    assert run_learned(*TEST, *DDPM, "--save_x_origin") == 0
    plain, edited = generated[:2]
    assert plain["edit"] is None
    assert (plain["t_boost"], edited["t_boost"]) == (1000, 1000)
    assert len(stored("noise_maps")) == 2
    [first, *_] = [latent["z"] for latent in stored("noise_maps").values() if close(latent["z"], plain["noise"])]
    assert first.dtype == torch.float16
    assert not torch.allclose(plain["x_0"], edited["x_0"], atol=1e-4)
    results = of_ddpm(results)
    written = settings(results, "test")
    assert (written["flags"]["inversion"], written["t_boost"]) == ("ddpm", 0)
    assert "t_boost 0 (--inversion ddpm)" in capsys.readouterr().err
    page = (results / "report.html").read_text()
    assert "<dt>inversion</dt><dd>DDPM, noise maps</dd>" in page


def of_ddpm(results):
    """The folder of the same experiment for --inversion ddpm."""
    return results.with_name(f"{results.name}_ddpm")


def close(z, noise):
    """Whether a stored z is what the process was given for its single image."""
    return all(torch.equal(noise(i, (1, *z.shape[1:]))[0].cpu(), z[i].float()) for i in range(len(z)))


def test_report_of_ddim_says_so(run_learned, results):
    assert run_learned(*TEST) == 0
    assert "<dt>inversion</dt><dd>DDIM</dd>" in (results / "report.html").read_text()


def test_fixed_point_inversion_has_its_own_latents_and_folder(run_learned, results):
    assert run_learned(*TEST, "--inversion", "fixed_point") == 0
    fixed = results.with_name(f"{results.name}_fixed_point")
    assert settings(fixed, "test")["flags"]["inversion"] == "fixed_point"
    assert "<dt>inversion</dt><dd>DDIM with fixed-point iterations</dd>" in (fixed / "report.html").read_text()
    assert not (results / "settings_test.yml").exists()
    [(x_T, key)] = [(latent["x_T"], key) for key, latent in stored("latent").items()][:1]
    assert run_learned(*TEST) == 0
    others = {other: latent["x_T"] for other, latent in stored("latent").items() if other != key}
    assert others and not any(torch.equal(x_T, other) for other in others.values())


def test_reconstruction_of_an_evaluation_is_that_of_the_inversion(run_learned, results, capsys):
    found = {}
    for inversion in ("ddim", "ddpm"):
        assert run_learned("--evaluate", *SMILE, "--inversion", inversion) == 0
        folder = results if inversion == "ddim" else of_ddpm(results)
        told = json.loads((folder / "evaluation.json").read_text())
        assert told["settings"]["inversion"] == inversion
        assert ("; inversion ddpm" in capsys.readouterr().out) == (inversion == "ddpm")
        found[inversion] = told["summary"]["reconstruction"]["PSNR in dB"]["mean"]
        assert f"Inversion: {'DDIM' if inversion == 'ddim' else 'DDPM, noise maps'}." in (folder / "report.html").read_text()
    assert found["ddpm"] > found["ddim"] + 5


def test_precomputed_maps_are_found_by_the_test_and_drawn(run_learned, tmp_path):
    assert run_learned("--just_precompute", "--n_precomp_img", "2", "--save_precomputed_images", *DDPM) == 0
    then = {key: Store().path("noise_maps", key).stat().st_mtime_ns for key in stored("noise_maps")}
    assert len(then) == 4
    assert len(list(tmp_path.glob("runs/*/image_samples/precomputed_test/*.png"))) == 2
    assert run_learned(*TEST, *DDPM) == 0
    assert {key: Store().path("noise_maps", key).stat().st_mtime_ns for key in stored("noise_maps")} == then


def test_batch_size_changes_no_picture(run_learned, generated):
    for size in ("1", "2"):
        assert run_learned(*TEST, *DDPM, "--bs_test", size) == 0
    one, other, both = (call["x_0"] for call in generated)
    assert torch.allclose(torch.cat([one, other]), both, atol=1e-3)


def test_mean_over_images_with_maps_is_another(run_learned):
    mean = (*TEST, "--num_mean_of_delta_hs", "2", "--n_test_img", "1")
    for n, more in enumerate([(), DDPM, (*DDPM, "--seed", "7")], 1):
        assert run_learned(*mean, *more) == 0
        assert len(stored("mean")) == n


def test_edit_in_a_region_and_a_shorter_process(run_learned, generated):
    assert run_learned(*TEST, *DDPM, "--edit_threshold", "0.7", "--t_0", "800", "--save_process_origin") == 0
    assert all(call["t_boost"] == 801 for call in generated)


# ---- what is refused, and what is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--run_train", *SMILE), "--run_train uses DDIM latents: use --inversion ddpm only"),
        (("--fit_direction", "h_pca"), "--fit_direction uses DDIM latents: use --inversion ddpm only"),
        (("--lpips",), "--inversion ddpm needs --just_precompute, --run_test or --evaluate"),
        ((*TEST, "--load_random_noise"), "--load_random_noise does not invert images: leave out --inversion ddpm"),
        ((*TEST, "--sample_type", "ddpm"), "leave out --sample_type ddpm"),
        (
            (*TEST, "--n_test_step", "5"),
            "n_inv_step is 4 (flag) and n_test_step is 5 (flag): set --n_inv_step and --n_test_step",
        ),
        ((*TEST, "--dt_lambda", "0.9"), "needs --dt_lambda 1, not 0.9 (flag)"),
    ],
)
def test_refused(run_learned, monkeypatch, flags, message):
    def loaded(*args):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr("asyrp.runner.open_model", loaded)
    assert message in run_learned.error(*flags, *DDPM)


def test_steps_of_the_record_count(run_learned):
    """The direction was trained with n_inv_step 4, and no flag overrides it."""
    said = run_learned.error(*TEST, *DDPM, "--n_test_step", "5", steps=())
    assert "n_inv_step is 4 (smile_LC_CUSTOM" in said
    assert run_learned(*TEST, *DDPM, "--n_test_step", "4", steps=()) == 0


def test_no_step_and_every_step_are_as_many(run_learned, generated):
    every = ("--t_0", "6", "--user_defined_t_edit", "3", "--n_inv_step", "0", "--n_test_step", "7")
    assert run_learned(*TEST, *DDPM, *every) == 0
    assert generated[0]["steps"] == list(range(7))


def test_boosting_flags_warn(run_learned, generated, capsys):
    flags = ("--user_defined_t_addnoise", "700", "--origin_process_addnoise")
    assert run_learned(*TEST, *DDPM, *flags) == 0
    said = "--user_defined_t_addnoise, --origin_process_addnoise: no effect, because --inversion ddpm adds noise at every step"
    assert capsys.readouterr().err.count(said) == 1
    assert run_learned(*TEST, *DDPM) == 0
    assert "no effect" not in capsys.readouterr().err  # of --user_defined_t_addnoise 0
    assert torch.equal(generated[0]["x_0"], generated[-2]["x_0"])


def test_training_ignores_it_where_nothing_is_trained(run):
    """The published script of the precomputation gives --run_train as well."""
    assert run("--just_precompute", "--run_train", "--n_precomp_img", "1", *DDPM) == 0
    assert directions() == {}
    assert len(stored("noise_maps")) == 2


def test_no_curves_are_needed_for_boosting(run_learned):
    shutil.rmtree("precomputed/curve", ignore_errors=True)
    assert run_learned(*TEST, *DDPM, intervals=("--user_defined_t_edit", "500")) == 0
