"""Checkpoints of every accepted form give the same tensors; every defect is refused by name; random weights are fixed."""

import hashlib
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import save, save_file
from toprovar.models.checkpoint import (
    check_keys,
    fetch_weights,
    load_into,
    open_checkpoint,
    random_weights,
)
from toprovar.profiles.errors import CheckpointError
from toprovar.profiles.manifest import sha256_of
from torch import nn


class Attention(nn.Module):
    """The kinds of parameter and buffer that Infinity has, at a small size."""

    def __init__(self, channels=6, heads=2):
        super().__init__()
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, heads, 1, 1))
        self.q_bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("zero_k_bias", torch.empty(channels))
        self.proj = nn.Linear(channels, channels)


class Model(nn.Module):
    def __init__(self, text_maxlen=5):
        super().__init__()
        self.cfg_uncond = nn.Parameter(torch.empty(text_maxlen, 6))
        self.lvl_embed = nn.Embedding(4, 6)
        self.conv = nn.Conv2d(3, 64, 5)
        self.norm = nn.LayerNorm(6)
        self.sa = Attention()
        self.twin = self.sa
        self.register_buffer("mask", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("table", torch.zeros(2), persistent=False)


def on_meta(**options):
    with torch.device("meta"):
        return Model(**options)


def make_state(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, like in Model(**options).state_dict().items():
        if like.is_floating_point():
            state[name] = torch.randn(like.shape, generator=generator)
        else:
            state[name] = torch.arange(like.numel()).reshape(like.shape)
    for name in [name for name in state if name.startswith("twin.")]:
        state[name] = state[name.replace("twin.", "sa.")].clone()
    return state


def write_shards(folder, state, suffix):
    """The state in two shards of the Hugging Face layout, with its index."""
    folder.mkdir(exist_ok=True)
    names = sorted(state)
    shard_of = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002{suffix}"
        content = {name: state[name] for name in part}
        if suffix == ".bin":
            torch.save(content, folder / shard)
        else:
            save_file(content, folder / shard)
        shard_of.update(dict.fromkeys(part, shard))
    (folder / f"model{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return folder


def write_form(form, folder, state):
    if form in ("safetensors", "folder-of-one"):
        save_file(state, folder / "w.safetensors")
        return folder if form == "folder-of-one" else folder / "w.safetensors"
    if form in (".safetensors", ".bin"):
        return write_shards(folder / "sharded", state, form)
    content = {"vae": state, "epoch": 3} if form == "nested" else state
    torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=form != "legacy")
    return folder / "w.pth"


def refused(function, *args, **options):
    with pytest.raises(CheckpointError) as caught:
        function(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["pth", "nested", "legacy", "safetensors", "folder-of-one", ".safetensors", ".bin"])
def test_every_form_gives_the_same_tensors(tmp_path, form):
    state = make_state()
    checkpoint = open_checkpoint(write_form(form, tmp_path, state), key="vae")
    assert_same(checkpoint, state)
    assert checkpoint.sha256 == {}
    assert checkpoint.digest() == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in checkpoint.files}
    module = on_meta()
    load_into(module, checkpoint)
    assert_same(module.state_dict(), state)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_tensors_are_mapped_not_read(tmp_path, name):
    """64 MB are opened and assigned to a module; the private memory of the process must not grow by them."""

    def private_bytes():
        line = next(ln for ln in Path("/proc/self/status").read_text().splitlines() if ln.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    state = {"weight": torch.ones(4096, 4096), "bias": torch.zeros(4096)}
    path = tmp_path / name
    torch.save(state, path) if name.endswith("pth") else save_file(state, path)
    with torch.device("meta"):
        module = nn.Linear(4096, 4096)
    before = private_bytes()
    load_into(module, open_checkpoint(path))
    assert float(module.weight.detach().sum()) == 4096**2
    assert private_bytes() - before < 16e6
    digest = sha256_of(path)
    with torch.no_grad():
        module.bias.add_(1)
    assert sha256_of(path) == digest


def test_cast_is_of_floats_only_and_keeps_equal_dtypes(tmp_path):
    state = make_state()
    save_file(state, tmp_path / "w.safetensors")
    checkpoint = open_checkpoint(tmp_path / "w.safetensors")
    module = on_meta()
    load_into(module, checkpoint, torch.bfloat16)
    for name, tensor in module.state_dict().items():
        expected = state[name].bfloat16() if state[name].is_floating_point() else state[name]
        assert torch.equal(tensor, expected), name
    load_into(module, checkpoint, torch.float32)
    assert module.conv.weight.data_ptr() == checkpoint["conv.weight"].data_ptr()
    assert module.sa is module.twin
    assert module.table.is_meta  # outside the state dict: the caller's


@pytest.mark.parametrize("rows", [3, 5, 9])
def test_cfg_uncond_is_cut_or_padded_with_zeros(tmp_path, rows):
    state = make_state(text_maxlen=rows)
    save_file(state, tmp_path / "w.safetensors")
    module = on_meta(text_maxlen=5)
    load_into(module, open_checkpoint(tmp_path / "w.safetensors"))
    expected = torch.zeros(5, 6)
    expected[:rows] = state["cfg_uncond"][:5]
    assert torch.equal(module.cfg_uncond, expected)


def test_all_differences_are_told_together(tmp_path):
    state = make_state()
    state["lvl_1L"] = torch.zeros(3)
    del state["norm.weight"]
    state["extra"] = torch.zeros(1)
    state["conv.bias"] = torch.zeros(7)
    state["cfg_uncond"] = torch.zeros(5, 8)
    save_file(state, tmp_path / "w.safetensors")
    message = refused(load_into, on_meta(), open_checkpoint(tmp_path / "w.safetensors"))
    assert "1 missing: norm.weight; 1 unexpected: extra; 2 of another shape: " in message
    assert "conv.bias [7] instead of [64]" in message
    assert "cfg_uncond [5, 8] instead of [5, 6]" in message


def test_long_lists_of_keys_are_cut_at_eight():
    wrong = {f"blocks.{i}.w": (2,) for i in range(11)}
    right = {f"block_chunks.0.module.{i}.w": (2,) for i in range(8)}
    message = refused(check_keys, "w.pth", right, wrong)
    assert "8 missing: " + ", ".join(right) + ";" in message
    assert "11 unexpected: " + ", ".join(list(wrong)[:8]) + " and 3 more" in message
    check_keys("w.pth", right, {**right, "attn_bias_for_masking": (1,), "Infinity_visible_kvlen": (2,)})
    assert "1 unexpected: lvl_1L" in refused(check_keys, "w.pth", {}, {"lvl_1L": (1,)}, ignore=frozenset())


class Unsafe:
    """Any class: a checkpoint that needs it must not be loaded."""


def damaged_files():
    """Content by (suffix, id) with what the refusal must say."""

    def saved(content, **options):
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        return buffer.getvalue()

    tensors = {"a": torch.ones(50)}
    cut = "damaged, cut short or not a"
    return {
        "pth-cut": (".pth", saved(tensors)[:-40], f"{cut} PyTorch file"),
        "pth-legacy-cut": (".pth", saved(tensors, _use_new_zipfile_serialization=False)[:-5], cut),
        "pth-foreign": (".pth", b"hello world, no weights", cut),
        "pth-empty": (".pt", b"", cut),
        "pth-object": (".pth", saved({"a": Unsafe()}), "loading those could run code"),
        "pth-legacy-object": (".bin", saved({"a": Unsafe()}, _use_new_zipfile_serialization=False), "could run code"),
        "pth-list": (".pth", saved([torch.ones(1)]), "holds list, expected a dict of tensors"),
        "pth-nested": (".pth", saved({"trainer": {"a": 1}, "x": 2}), "nested entries trainer; 'vae' is not among them"),
        "pth-numbers": (".pth", saved({"a": torch.ones(1), "lr": 0.1}), "entries are not tensors: lr"),
        "safetensors-cut": (".safetensors", save(tensors)[:-7], f"{cut} safetensors file"),
        "safetensors-foreign": (".safetensors", b"hello world, no weights", cut),
        "suffix": (".onnx", b"x", "cannot tell the format of '.onnx'; expected one of .safetensors, .pth"),
    }


@pytest.mark.parametrize("case", damaged_files().values(), ids=damaged_files().keys())
def test_damaged_and_foreign_files(tmp_path, case):
    suffix, content, said = case
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    message = refused(open_checkpoint, path, key="vae")
    assert message.startswith(f"{path}: ")
    assert said in message


def test_folders(tmp_path):
    assert "no such file or folder" in refused(open_checkpoint, tmp_path / "no.pth")
    assert "folder with no weights file" in refused(open_checkpoint, tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.ones(1)}, tmp_path / name)
    assert "2 weights files: a.safetensors, b.safetensors; pass the file" in refused(open_checkpoint, tmp_path)


def test_defects_of_an_index(tmp_path):
    folder = write_shards(tmp_path / "w", make_state(), ".safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert "model-00002-of-00002.safetensors: lacks what model.safetensors.index.json says it holds: ghost" in refused(
        open_checkpoint, folder
    )
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 shards are missing: model-00002-of-00002.safetensors" in refused(open_checkpoint, folder)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert "must lie beside the index" in refused(open_checkpoint, folder)
    index.write_text("[1]")
    assert "is not an index of shards" in refused(open_checkpoint, folder)


def test_random_weights_have_their_scales():
    module = on_meta()
    random_weights(module, seed=3)
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
    assert torch.equal(module.sa.scale_mul_1H11, torch.full((1, 2, 1, 1), math.log(4)))
    for zero in (module.sa.q_bias, module.sa.zero_k_bias, module.sa.proj.bias, module.norm.bias, module.mask):
        assert not zero.any()
    assert torch.equal(module.norm.weight, torch.ones(6))
    assert abs(float(module.conv.weight.detach().std()) * 75**0.5 - 1) < 0.05  # 4,800 values: 5 standard errors
    with torch.device("meta"):
        big = nn.Sequential(nn.Linear(200, 100), nn.Embedding(300, 50))
    random_weights(big, seed=3)
    for weight in (big[0].weight.detach(), big[1].weight.detach()):
        assert abs(float(weight.std()) / 0.02 - 1) < 0.03
        assert abs(float(weight.mean())) < 0.001
    assert module.sa is module.twin
    assert module.conv.weight.requires_grad


def test_random_weights_depend_on_seed_and_name_alone():
    with torch.device("meta"):
        one = nn.ModuleDict({"a": nn.Linear(7, 9), "b": nn.Linear(7, 9)})
        other = nn.ModuleDict({"b": nn.Linear(7, 9), "x": nn.Conv2d(1, 2, 3), "a": nn.Linear(7, 9)})
    random_weights(one, seed=1, dtype=torch.bfloat16)
    random_weights(other, seed=1, dtype=torch.bfloat16)
    assert one["a"].weight.dtype == torch.bfloat16
    for name in "ab":
        assert torch.equal(one[name].weight, other[name].weight)
    assert not torch.equal(one["a"].weight, one["b"].weight)
    random_weights(other, seed=2, dtype=torch.bfloat16)
    assert not torch.equal(one["a"].weight, other["a"].weight)


def test_tied_parameters_get_one_value():
    with torch.device("meta"):
        module = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
        module["b"].weight = module["a"].weight
    random_weights(module, seed=0)
    assert module["a"].weight.data_ptr() == module["b"].weight.data_ptr()


class Hub:
    """A stand-in for the hub: one repository, and what was asked of it."""

    def __init__(self, monkeypatch, root, files, online=True):
        self.files, self.root, self.online, self.asked = files, root, online, []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repository, revision, timeout):
        if not self.online:
            raise ConnectionError("no route to host")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, repository, revision, allow_patterns, local_files_only):
        self.asked.append((repository, revision, allow_patterns, local_files_only))
        if self.root is None:
            raise FileNotFoundError("nothing in the cache,\nand no connection")
        for name in allow_patterns or ():
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).touch()
        return str(self.root)


MANY = ["README.md", "a.pth", "b.pth", "big/m-1.bin", "big/m-2.bin", "big/m.bin.index.json", "one/x.bin", "one/x.safetensors"]


@pytest.mark.parametrize(
    ("inner", "wanted"),
    [
        ("b.pth", ["b.pth"]),
        ("big", ["big/m-1.bin", "big/m-2.bin", "big/m.bin.index.json"]),
        ("big/", ["big/m-1.bin", "big/m-2.bin", "big/m.bin.index.json"]),
        ("one", ["one/x.safetensors"]),
    ],
)
def test_only_the_needed_files_are_fetched(tmp_path, monkeypatch, inner, wanted):
    hub = Hub(monkeypatch, tmp_path, MANY)
    assert fetch_weights(f"owner/repo:{inner}", "v1") == tmp_path / inner
    assert hub.asked == [("owner/repo", "v1", wanted, False)]


def test_unclear_choice_lists_the_files(tmp_path, monkeypatch):
    hub = Hub(monkeypatch, tmp_path, MANY)
    assert "2 weights files without an index" in refused(fetch_weights, "owner/repo", None)
    assert "'owner/repo:file' out of: a.pth, b.pth" in refused(fetch_weights, "owner/repo", None)
    assert "owner/repo:c.pth: no such weights" in refused(fetch_weights, "owner/repo:c.pth", None)
    assert hub.asked == []


def test_without_a_network_the_cache_serves(tmp_path, monkeypatch):
    hub = Hub(monkeypatch, tmp_path, [], online=False)
    (tmp_path / "b.pth").touch()
    assert fetch_weights("owner/repo:b.pth") == tmp_path / "b.pth"
    assert hub.asked == [("owner/repo", None, None, True)]
    assert "not in the cached copy" in refused(fetch_weights, "owner/repo:c.pth")
    hub.root = None
    message = refused(fetch_weights, "owner/repo:b.pth")
    assert "neither a path nor a repository that can be reached" in message
    assert "download the file by hand and pass its path" in message


def test_local_paths_need_no_hub(tmp_path):
    assert fetch_weights(str(tmp_path), "any") == tmp_path
    for spec in ("weights/infinity_2b_reg.pth", "/no/such/folder", "no-such-name"):
        assert f"{spec}: no such file or folder" in refused(fetch_weights, spec, None)
