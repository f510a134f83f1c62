"""The tokenizer's corner cases, and that padding does not leak into the encoder's features."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from toprovar.models.tiny.text import WordTokenizer
from toprovar.models.tiny.text_encoder import WordEncoder
from toprovar.models.tiny.vocabulary import WORD_ID, WORDS
from toprovar.profiles.errors import ToprovarError


def ids(*words: str) -> list[int]:
    return [WORD_ID[word] for word in words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("a red star", ["a", "red", "star", "</s>"], id="plain"),
        pytest.param(" A Photo,of\tTWO  rings!", ["a", "photo", "of", "two", "rings", "</s>"], id="case-punctuation"),
        pytest.param("a zebra above a ring", ["a", "<unk>", "above", "a", "ring", "</s>"], id="unknown"),
        pytest.param("", ["</s>"], id="empty"),
        pytest.param("</s> <pad>", ["<unk>", "<unk>", "</s>"], id="specials-are-not-words"),
        pytest.param("étoile 星", ["<unk>", "<unk>", "</s>"], id="other-scripts"),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    encoded = WordTokenizer().encode([text])
    assert encoded.ids.tolist() == [ids(*words)]
    assert encoded.lengths.tolist() == [len(words)]
    assert not encoded.cut.any()


def test_batch_is_padded_to_the_longest_or_to_width() -> None:
    encoded = WordTokenizer().encode(["a star", ""])
    assert encoded.ids.tolist() == [ids("a", "star", "</s>"), ids("</s>", "<pad>", "<pad>")]
    assert encoded.ids.dtype == np.int64
    wide = WordTokenizer().encode(["a star", ""], width=5)
    np.testing.assert_array_equal(wide.ids[:, :3], encoded.ids)
    assert (wide.ids[:, 3:] == 0).all()
    assert WordTokenizer().encode([]).ids.shape == (0, 1)


def test_long_text_is_cut_and_says_so() -> None:
    encoded = WordTokenizer(max_length=4).encode(["a red star", "a red star above", "star"])
    assert encoded.cut.tolist() == [False, True, False]
    assert encoded.ids[1].tolist() == ids("a", "red", "star", "</s>")


def test_mistakes_are_told() -> None:
    with pytest.raises(ToprovarError, match="pass a list of strings"):
        WordTokenizer().encode("a star")
    with pytest.raises(ToprovarError, match=r"width 2: must be between 3 \(longest text\) and 16"):
        WordTokenizer().encode(["a star"], width=2)
    with pytest.raises(ToprovarError, match=r"repeats \['a'\]"):
        WordTokenizer([*WORDS, "a"])
    with pytest.raises(ToprovarError, match="must start with"):
        WordTokenizer(WORDS[1:])


def test_tokenizer_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, toprovar.models.tiny.text; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def encoder() -> WordEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = WordEncoder().eval()
        # the fresh weights are small: enlarge them, so that a leak would show
        for parameter in encoder.parameters():
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return encoder


@torch.inference_mode()
def test_padding_changes_nothing(encoder: WordEncoder) -> None:
    texts = ["a photo of a star", "three moons", ""]
    narrow, wide = (WordTokenizer().encode(texts, width=width) for width in (8, 16))
    short, long = (encoder(torch.from_numpy(one.ids)) for one in (narrow, wide))
    torch.testing.assert_close(long[:, :8], short, rtol=0, atol=2e-5)
    assert (long[:, 8:] == 0).all()
    for row, text in enumerate(texts):
        alone = encoder(torch.from_numpy(WordTokenizer().encode([text]).ids))[0]
        torch.testing.assert_close(short[row, : len(alone)], alone, rtol=0, atol=2e-5)
        assert (short[row, len(alone) :] == 0).all()
    assert short.dtype == torch.float32


@torch.inference_mode()
def test_order_of_words_matters(encoder: WordEncoder) -> None:
    one, other = (torch.tensor([ids(*text.split(), "</s>")]) for text in ("star above ring", "ring above star"))
    assert (encoder(one)[0, -1] - encoder(other)[0, -1]).abs().max() > 0.05


@torch.inference_mode()
def test_all_padding_is_zero_not_nan(encoder: WordEncoder) -> None:
    assert (encoder(torch.zeros(1, 3, dtype=torch.int64)) == 0).all()


def test_too_many_tokens_are_refused(encoder: WordEncoder) -> None:
    with pytest.raises(ToprovarError, match="17 tokens a text, the encoder takes 16"):
        encoder(torch.ones(1, 17, dtype=torch.int64))


def test_exports_to_onnx_with_dynamic_batch_and_length(encoder: WordEncoder) -> None:
    """One graph serves every batch and length, with the features of torch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=16)
    sample = torch.from_numpy(WordTokenizer().encode(["a star", "two red rings"], width=7).ids)
    program = torch.onnx.export(encoder, (sample,), dynamo=True, dynamic_shapes=({0: batch, 1: length},), verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for texts, width in ((["an orange heart above a cross"], 16), (["", "a", "two moons"], 4)):
        tokens = WordTokenizer().encode(texts, width=width).ids
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(tokens)).numpy()
        (features,) = session.run(None, {session.get_inputs()[0].name: tokens})
        np.testing.assert_allclose(features, expected, atol=2e-5)
