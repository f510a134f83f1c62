"""The T5 encoder against transformers itself, one unpadded prompt at a time, on a tiny random model made offline."""

import builtins
import socket
import time

import pytest
import torch
from toprovar.models.text.t5 import T5TextEncoder
from toprovar.profiles.errors import CheckpointError, PromptError, ToprovarError

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

WORDS = ["a", "red", "blue", "cube", "sphere", "on", "under", "two"]
PROMPTS = ["a red cube on two blue sphere", "", "two", "a blue sphere unknown words under a cube " * 3]
LENGTHS = [8, 1, 2, 25]  # words and </s>
TOLERANCE = 1e-5  # fp32; measured 6e-7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    ).save_pretrained(path)
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # the whole model, as flan-t5-xl is published: the decoder must be left out
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return T5TextEncoder.load(str(folder), dtype=torch.float16)


def direct(folder, prompt):
    """Features `[T, C]` of one prompt, tokenized by hand and run without padding."""
    model = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [WORDS.index(word) + 3 if word in WORDS else 2 for word in prompt.split()] + [1]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def test_features_equal_those_of_the_unpadded_prompt(folder, encoder):
    features, lengths = encoder.encode(PROMPTS)
    assert (features.dtype, lengths.dtype) == (torch.float32, torch.int64)
    assert lengths.tolist() == LENGTHS
    assert features.shape == (4, 25, encoder.channels)
    for row, prompt, length in zip(features, PROMPTS, LENGTHS, strict=True):
        torch.testing.assert_close(row[:length], direct(folder, prompt), rtol=0, atol=TOLERANCE)
        assert not row[length:].any()


def test_the_cpu_runs_in_fp32(encoder):
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_long_prompts_are_cut_at_512_and_told(folder, encoder, recwarn):
    prompts = ["red " * 511, "red " * 512, "two", "blue " * 2000]
    features, lengths = encoder.encode(prompts)
    assert lengths.tolist() == [512, 512, 2, 512]
    assert encoder.truncated(prompts) == [False, True, False, True]
    assert encoder.truncated([]) == []
    kept = direct(folder, "red " * 511)
    torch.testing.assert_close(features[1, :512], kept, rtol=0, atol=TOLERANCE)  # the cut text still ends with </s>
    assert not recwarn.list


def test_no_prompts():
    with pytest.raises(PromptError, match="pass at least one"):
        T5TextEncoder(None, None).encode([])


def test_missing_weights_are_refused(folder, tmp_path):
    """transformers would fill them with random values and go on."""
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of the T5 encoder, as encoder\.block\.1\.layer\.0\.Self"):
        T5TextEncoder.load(str(tmp_path))


@pytest.mark.parametrize("content", [None, b"{}", b"not json"], ids=["empty-folder", "no-model-type", "malformed"])
def test_unreadable_folder_is_told_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="no T5 encoder can be loaded") as caught:
        T5TextEncoder.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_a_network_the_answer_is_quick(monkeypatch, capfd):
    """transformers alone retries for 50 s and logs each attempt."""

    def refuse(*args):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start_s = time.monotonic()
    with pytest.raises(CheckpointError, match=r"no-one/no-t5: no T5 encoder can be loaded.*pass its folder"):
        T5TextEncoder.load("no-one/no-t5")
    assert time.monotonic() - start_s < 10
    assert "Retrying" not in capfd.readouterr().err


def test_missing_transformers_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def without_transformers(name, *args, **options):
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(ToprovarError, match=r"pip install toprovar\[t5\]"):
        T5TextEncoder.load("google/flan-t5-xl")
