import pytest
import torch
from golden_unets import ARCHITECTURES, MANIFEST, golden_arrays, golden_unet, golden_weights, relative_l2, settings
from golden_weights import golden_json

from models import build_unet

TOLERANCE = 5e-6
CASES = [case for case in MANIFEST["cases"] if case.split("/")[1] not in ("processes", "training")]


def edited_h(h, emb, blocks, case):
    """c_0 h + sum_i c_{i+1} delta_h_i as the manifest's case wants it -> (edited h, the last delta_h)."""
    origin, *strengths = case["hs_coeff"]
    edited = origin * h
    for block, strength in zip(blocks[: case["index"] + 1], strengths, strict=True):
        delta_h = block(h, None if case.get("ignore_timestep") else emb)
        edited = edited + strength * delta_h
    return edited, delta_h


@pytest.mark.parametrize("name", CASES)
def test_golden_case(name):
    architecture, label = name.split("/")
    case = MANIFEST["cases"][name]
    unet, blocks = golden_unet(architecture)
    golden = golden_arrays(f"unet_{architecture}")
    expected = {key.split("/")[1]: value for key, value in golden.items() if key.startswith(f"{label}/")}
    with torch.no_grad():
        x = golden["x"]
        h, skips, emb = unet.encode(x, torch.full((len(x),), case["t"]))
        found = {"h": h, "eps": unet.decode(h, skips, emb)}
        if "hs_coeff" in case and case["t"] >= case["t_edit"]:
            edited, found["delta_h"] = edited_h(h, emb, blocks, case)
            found["eps_edit"] = unet.decode(edited, skips, emb)
        elif "hs_coeff" in case:
            found["eps_edit"] = found["eps"]  # below t_edit nothing is edited
    assert found.keys() == expected.keys()
    errors = {key: relative_l2(found[key], expected[key]) for key in expected}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", ["ddpm", "iddpm", "adm"])
def test_edit_changes_the_prediction(name):
    """Guards the golden cases: an edit that is dropped would be far outside their tolerance."""
    golden = golden_arrays(f"unet_{name}")
    assert relative_l2(golden["delta/eps_edit"], golden["delta/eps"]) > 1000 * TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_and_shapes_are_the_published_ones(name):
    unet = build_unet(settings(name))
    block = unet.new_delta_block()
    expected = {key: tuple(shape) for key, shape in golden_json(f"keys_{name}.json").items()}
    found = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    for i in range(2):
        found |= {f"layer_{i}.{key}": tuple(value.shape) for key, value in block.state_dict().items()}
    assert found == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_halves_are_the_network(name):
    unet, _ = golden_unet(name)
    x, t = golden_arrays(f"unet_{name}")["x"], torch.tensor([20, 999])
    with torch.no_grad():
        h, skips, emb = unet.encode(x, t)
        kept = [skip.clone() for skip in skips]
        first, second = unet.decode(h, skips, emb), unet.decode(h, skips, emb)
        assert torch.equal(first, unet(x, t))
        assert torch.equal(first, second)
    assert len(skips) == len(kept)
    assert all(torch.equal(a, b) for a, b in zip(skips, kept, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_image_has_its_own_timestep(name):
    unet, _ = golden_unet(name)
    x = golden_arrays(f"unet_{name}")["x"]
    with torch.no_grad():
        together = unet(x, torch.tensor([20, 999]))
        alone = torch.cat([unet(x[:1], torch.tensor([20])), unet(x[1:], torch.tensor([999]))])
    assert relative_l2(together, alone) < TOLERANCE
    assert relative_l2(together[:1], together[1:]) > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_built_frozen_and_in_eval_mode(name):
    unet = build_unet(settings(name))
    assert not unet.training
    assert not any(p.requires_grad for p in unet.parameters())
    assert all(p.requires_grad for p in unet.new_delta_block().parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_reaches_the_delta_block(name):
    unet = build_unet(settings(name))
    unet.load_state_dict(golden_weights(name)[0])
    block = unet.new_delta_block()
    x, t = golden_arrays(f"unet_{name}")["x"], torch.full((2,), 500)
    with torch.no_grad():
        h, skips, emb = unet.encode(x, t)
    unet.decode(h + block(h, emb), skips, emb).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    assert all(p.grad is None for p in unet.parameters())


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"type": "vit"}, "unknown"),
        ({"type": "ddpm", "ch": 32, "ch_mult": [1], "num_res_blocks": 1}, "has no attn_resolutions"),
        ({"type": "simple"}, "data.dataset"),
    ],
)
def test_settings_of_an_unknown_network(model, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_unet({"data": {"image_size": 32, "dataset": "Cats"}, "model": model})
