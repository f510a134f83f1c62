"""The language model's text encoder against transformers itself, on a tiny random Qwen2 made offline."""

from types import SimpleNamespace

import pytest
import torch
from toprovar.models.text import system_prompt
from toprovar.models.text.llm import LlmTextEncoder
from toprovar.models.text.system_prompt import SYSTEM_PROMPT, prompt_sha256, read_system_prompt
from toprovar.profiles.errors import CheckpointError, PromptError

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

PAD = "<|endoftext|>"
SYSTEM = "draw:"
TOKENS = 6
TOLERANCE = 1e-5  # fp32; measured 5e-7


def alphabet():
    """Byte-level letters in the order of their ids; `<|endoftext|>` comes first."""
    return [PAD, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]


def write_tokenizer(path, pad):
    """Qwen2's kind of tokenizer without merges: a token a byte."""
    vocabulary = {letter: i for i, letter in enumerate(alphabet())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad).save_pretrained(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm")
    write_tokenizer(path, PAD)
    config = transformers.Qwen2Config(
        vocab_size=257,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # with its head, as language models are published: it must be left out
        model = transformers.Qwen2ForCausalLM(config)
    model.save_pretrained(path)
    (path / SYSTEM_PROMPT).write_text(SYSTEM)
    return path


def ids_of(text):
    return [alphabet().index(letter) for letter in text.replace(" ", "\u0120")]


def states(folder, ids, mask):
    """Last hidden states `[N, C]` of one sequence."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask]), output_hidden_states=True)
    return out.hidden_states[-1][0]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("system", [SYSTEM, ""], ids=["system-prompt", "none"])
def test_features_are_those_behind_the_system_prompt(folder, padding, system):
    encoder = LlmTextEncoder.load(str(folder), TOKENS, padding, system_prompt=system, dtype=torch.float16)
    prompts = ["red", "a", "two cubes"]
    features, lengths, cut = encoder.encode_prompts(prompts)
    assert (features.dtype, features.shape) == (torch.float32, (3, TOKENS, 24))
    assert lengths.tolist() == [3, 1, TOKENS]
    assert cut == (False, False, True)
    for row, prompt in zip(features, prompts, strict=True):
        words, front = ids_of(prompt)[:TOKENS], ids_of(system)
        pad = [0] * (TOKENS - len(words))
        ids = pad + words if padding == "left" else words + pad
        mask = [1] * len(front) + [int(i != 0) for i in ids]
        expected = states(folder, front + ids, mask)[len(front) :]
        seen = torch.tensor(ids) != 0 if padding == "left" else torch.ones(TOKENS, dtype=torch.bool)
        torch.testing.assert_close(row[seen], expected[seen], rtol=0, atol=TOLERANCE)
        assert torch.isfinite(row).all()


def test_the_system_prompt_comes_from_the_folder(folder):
    encoder = LlmTextEncoder.load(str(folder), TOKENS)
    assert encoder.system_prompt == SYSTEM
    given = LlmTextEncoder.load(str(folder), TOKENS, system_prompt="")
    assert not torch.allclose(encoder.encode(["a cube"])[0], given.encode(["a cube"])[0])


def test_a_prompt_does_not_depend_on_its_batch(folder):
    encoder = LlmTextEncoder.load(str(folder), TOKENS)
    together, _ = encoder.encode(["two", "a ring"])
    alone, _ = encoder.encode(["two"])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=TOLERANCE)


def test_missing_system_prompt_is_told_with_its_remedy(tmp_path):
    with pytest.raises(CheckpointError, match=r"no system_prompt\.txt.*in a clone of mit-han-lab/hart run `python -c .* > "):
        LlmTextEncoder.load(str(tmp_path), TOKENS)
    with pytest.raises(CheckpointError, match=r"owner/model: is no folder here.*pass --text-encoder FOLDER"):
        LlmTextEncoder.load("owner/model", TOKENS)
    (tmp_path / SYSTEM_PROMPT).write_text(" \n")
    with pytest.raises(CheckpointError, match=r"system_prompt\.txt: is empty"):
        LlmTextEncoder.load(str(tmp_path), TOKENS)


def test_an_editor_may_change_the_end_of_the_official_system_prompt(tmp_path, monkeypatch, caplog):
    """Its last character is a line break: a file without it, or with two, gave other tokens and said nothing."""
    monkeypatch.setattr(system_prompt, "OFFICIAL_SHA256", prompt_sha256("draw\nthis:\n"))
    for text in ("draw\nthis:\n", "draw\nthis:", "\ufeffdraw\r\nthis:\r\n\r\n"):
        (tmp_path / SYSTEM_PROMPT).write_bytes(text.encode())
        assert read_system_prompt(str(tmp_path)) == "draw\nthis:\n"
    assert not caplog.records
    (tmp_path / SYSTEM_PROMPT).write_text("paint this:  ")
    assert read_system_prompt(str(tmp_path)) == "paint this:  "
    assert "is not the system prompt that HART was released with" in caplog.text


def test_a_tokenizer_without_padding_is_refused(folder, tmp_path, monkeypatch):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("toprovar.models.text.llm.read_pretrained", lambda *args: (SimpleNamespace(pad_token_id=None), None))
    with pytest.raises(CheckpointError, match="its tokenizer has no padding token"):
        LlmTextEncoder.load(str(tmp_path), TOKENS)


def test_no_prompts():
    with pytest.raises(PromptError, match="pass at least one"):
        LlmTextEncoder(None, None, TOKENS).encode([])


def test_unreadable_folder_is_told_in_one_line(tmp_path):
    (tmp_path / SYSTEM_PROMPT).write_text(SYSTEM)
    with pytest.raises(CheckpointError, match="no language model can be loaded") as caught:
        LlmTextEncoder.load(str(tmp_path), TOKENS)
    assert "\n" not in str(caught.value)
